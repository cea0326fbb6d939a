//! The oracle against AWS's own account of security groups; the helpers that
//! build a small VPC and its packets.

use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::IpNet;

use super::*;
use crate::model::{
    AclAction, AclEntry, Address, Attachment, Entity, EntityIx, EntityKind, GroupIx, IcmpErrors,
    IcmpMatch, LoadBalancer, Peer, Place, PortRange, PrefixList, PrefixListIx, Route, RouteTable,
    RouteTarget, SecurityGroup, SecurityGroupRule, Subnet, SubnetIx, Tracking, Traffic, Via,
};

mod acls;
mod allowance;
mod closing;
mod flows;
mod fragments;
mod icmp_errors;
mod road;
mod routes;
mod rules;
mod services;
mod size;
mod untracked;

const TCP_80: Traffic = tcp(80);
const SYN: TcpFlags = flags(true, false, false, false);
const SYN_ACK: TcpFlags = flags(true, true, false, false);
const ACK: TcpFlags = flags(false, true, false, false);
const FIN_ACK: TcpFlags = flags(false, true, true, false);
const RST: TcpFlags = flags(false, false, false, true);
const RST_ACK: TcpFlags = flags(false, true, false, true);

const fn flags(syn: bool, ack: bool, fin: bool, rst: bool) -> TcpFlags {
    TcpFlags { syn, ack, fin, rst }
}

const fn tcp(port: u16) -> Traffic {
    Traffic::Tcp(PortRange {
        from: port,
        to: port,
    })
}

fn at(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn cidr(text: &str) -> Peer {
    match text.parse().unwrap() {
        IpNet::V4(block) => Peer::Ipv4(block),
        IpNet::V6(block) => Peer::Ipv6(block),
    }
}

fn any4() -> Peer {
    cidr("0.0.0.0/0")
}

fn any6() -> Peer {
    cidr("::/0")
}

impl Oracle {
    /// What becomes of the packet itself.
    fn verdict(&mut self, packet: &Packet, now: Duration) -> Judgement {
        self.judge(packet, now).judgement
    }
}

fn packet(from: InterfaceIx, source: &str, destination: &str, payload: Payload) -> Packet {
    Packet::whole(from, ip(source), ip(destination), payload, 100)
}

fn syn(from: InterfaceIx, source: &str, destination: &str, port: u16) -> Packet {
    tcp_packet(from, source, destination, 40_000, port, SYN)
}

fn tcp_packet(
    from: InterfaceIx,
    source: &str,
    destination: &str,
    source_port: u16,
    destination_port: u16,
    flags: TcpFlags,
) -> Packet {
    let payload = Payload::Tcp {
        source_port,
        destination_port,
        flags,
        sequence: 0,
        acknowledgement: 0,
        data: 0,
    };
    packet(from, source, destination, payload)
}

fn number(packet: &mut Packet, new_sequence: u32, new_acknowledgement: u32, new_data: u32) {
    let Payload::Tcp {
        sequence,
        acknowledgement,
        data,
        ..
    } = &mut packet.payload
    else {
        unreachable!("a TCP packet");
    };
    (*sequence, *acknowledgement, *data) = (new_sequence, new_acknowledgement, new_data);
}

fn udp(
    from: InterfaceIx,
    source: &str,
    destination: &str,
    source_port: u16,
    destination_port: u16,
) -> Packet {
    let payload = Payload::Udp {
        source_port,
        destination_port,
    };
    packet(from, source, destination, payload)
}

fn echo(from: InterfaceIx, source: &str, destination: &str, request: bool, id: u16) -> Packet {
    let kind = match (ip(source).is_ipv4(), request) {
        (true, true) => 8,
        (true, false) => 0,
        (false, true) => 128,
        (false, false) => 129,
    };
    packet(from, source, destination, Payload::IcmpQuery { kind, id })
}

/// An ICMP error about `about`, sent from the address that one was for.
fn error_about(from: InterfaceIx, about: &Packet, kind: u8, code: u8) -> Packet {
    let quoted = Quoted {
        source: about.source,
        destination: about.destination,
        speech: about.payload.speech(),
    };
    let payload = Payload::Icmp {
        kind,
        code,
        quoted: Some(quoted),
    };
    Packet::whole(from, about.destination, about.source, payload, 100)
}

fn dropped(reason: DropReason, at: InterfaceIx) -> Judgement {
    Judgement::Dropped { reason, at }
}

fn delivered(packet: &Packet, to: InterfaceIx, egress: Admission, ingress: Admission) -> Judgement {
    Judgement::Delivered {
        to,
        packet: *packet,
        split: None,
        egress: Some(egress),
        ingress: Some(ingress),
    }
}

fn is_delivered(judgement: Judgement) -> bool {
    matches!(judgement, Judgement::Delivered { .. })
}

fn ingress(judgement: Judgement) -> Option<Admission> {
    match judgement {
        Judgement::Delivered { ingress, .. } => ingress,
        Judgement::Dropped { .. } | Judgement::Held { .. } => None,
    }
}

fn egress(judgement: Judgement) -> Option<Admission> {
    match judgement {
        Judgement::Delivered { egress, .. } => egress,
        Judgement::Dropped { .. } | Judgement::Held { .. } => None,
    }
}

#[track_caller]
fn assert_delivered(judgement: Judgement, receiver: InterfaceIx) {
    assert!(
        matches!(judgement, Judgement::Delivered { to, .. } if to == receiver),
        "{judgement:?} instead of delivery to {receiver:?}"
    );
}

/// A small VPC, 10.0.0.0/16 and 2001:db8:1::/56, built up step by step.
struct Lab(Model);

impl Lab {
    /// With one subnet, as large as the VPC.
    fn new() -> Self {
        Self::of_subnets(&[&["10.0.0.0/16", "2001:db8:1::/56"]])
    }

    /// With these subnets; an interface lands in the one that has its address.
    fn of_subnets(subnets: &[&[&str]]) -> Self {
        let blocks =
            |texts: &[&str]| -> Vec<IpNet> { texts.iter().map(|t| t.parse().unwrap()).collect() };
        let mut model = Model::default();
        model.vpc.cidrs = blocks(&["10.0.0.0/16", "2001:db8:1::/56"]);
        for (nth, cidrs) in subnets.iter().enumerate() {
            model.subnets.push(Subnet {
                id: format!("subnet-{nth}"),
                name: format!("s{nth}"),
                cidrs: blocks(cidrs),
                network_acl: Default::default(),
                route_table: Default::default(),
                place: place(),
            });
        }
        Self(model)
    }

    fn model(&self) -> Model {
        self.0.clone().with_implied_tables()
    }

    fn oracle(&self) -> Oracle {
        Oracle::new(self.model())
    }

    /// Gives the subnet a network ACL of its own.
    fn acl(&mut self, subnet: usize, ingress: &[AclEntry], egress: &[AclEntry]) {
        self.0 = self.model();
        let acl = crate::model::AclIx::new(self.0.network_acls.len());
        let mut own = self.0.network_acls[0].clone();
        own.ingress = ingress.to_vec();
        own.egress = egress.to_vec();
        self.0.network_acls.push(own);
        self.0.subnets[subnet].network_acl = acl;
    }

    /// Gives the subnet a route table of its own. (Call it after all
    /// interfaces are there: the main table is made up by then.)
    fn routes(&mut self, subnet: usize, routes: &[(&str, RouteTarget)]) {
        self.0 = self.model();
        let table = crate::model::RouteTableIx::new(self.0.route_tables.len());
        self.0.route_tables.push(RouteTable {
            id: format!("rtb-{}", table.ix()),
            name: format!("t{}", table.ix()),
            routes: routes
                .iter()
                .map(|(destination, target)| Route {
                    destination: destination.parse().unwrap(),
                    target: *target,
                    target_text: String::new(),
                    place: place(),
                })
                .collect(),
            place: place(),
        });
        self.0.subnets[subnet].route_table = table;
    }

    fn group(&mut self, ingress: &[(Traffic, Peer)], egress: &[(Traffic, Peer)]) -> GroupIx {
        let group = GroupIx::new(self.0.security_groups.len());
        self.0.security_groups.push(Arc::new(SecurityGroup {
            id: format!("sg-{}", group.ix()),
            name: format!("g{}", group.ix()),
            description: String::new(),
            ingress: Vec::new(),
            egress: Vec::new(),
            place: place(),
        }));
        for (traffic, peer) in ingress {
            self.allow_in(group, *traffic, *peer);
        }
        for (traffic, peer) in egress {
            self.allow_out(group, *traffic, *peer);
        }
        group
    }

    fn allow_in(&mut self, group: GroupIx, traffic: Traffic, peer: Peer) {
        let rules = &mut self.0.group_mut(group).ingress;
        rules.push(rule("ingress", group, rules.len(), traffic, peer));
    }

    fn allow_out(&mut self, group: GroupIx, traffic: Traffic, peer: Peer) {
        let rules = &mut self.0.group_mut(group).egress;
        rules.push(rule("egress", group, rules.len(), traffic, peer));
    }

    fn prefix_list(&mut self, entries: &[&str]) -> Peer {
        let list = PrefixListIx::new(self.0.prefix_lists.len());
        self.0.prefix_lists.push(PrefixList {
            id: "pl-1".into(),
            name: "list".into(),
            entries: entries.iter().map(|text| text.parse().unwrap()).collect(),
            place: place(),
        });
        Peer::PrefixList(list)
    }

    fn eni(&mut self, address: &str, groups: &[GroupIx]) -> InterfaceIx {
        let subnet = self
            .0
            .subnets
            .iter()
            .position(|subnet| subnet.cidr_of(ip(address)).is_some())
            .unwrap();
        let attachment = Attachment::Subnet {
            subnet: SubnetIx::new(subnet),
            groups: groups.to_vec(),
        };
        self.interface(EntityKind::Ec2, attachment, address, None)
    }

    fn eni_with_public(&mut self, address: &str, public: &str, groups: &[GroupIx]) -> InterfaceIx {
        let eni = self.eni(address, groups);
        self.0.interfaces[eni.ix()].addresses[0].public = Some(public.parse::<Ipv4Addr>().unwrap());
        eni
    }

    fn external(&mut self, via: Via, address: &str) -> InterfaceIx {
        let kind = EntityKind::External(via);
        self.interface(kind, Attachment::External(via), address, None)
    }

    fn interface(
        &mut self,
        kind: EntityKind,
        attachment: Attachment,
        address: &str,
        public: Option<Ipv4Addr>,
    ) -> InterfaceIx {
        let ix = InterfaceIx::new(self.0.interfaces.len());
        self.0.entities.push(Entity {
            name: format!("e{}", ix.ix()),
            kind,
            engine: None,
            run: None,
            max_flows: None,
            place: place(),
        });
        self.0.interfaces.push(Interface {
            id: format!("eni-{}", ix.ix()),
            entity: EntityIx::new(ix.ix()),
            device: 0,
            attachment,
            addresses: vec![Address {
                private: ip(address),
                public,
            }],
            mtu: 9001,
            source_dest_check: true,
            tracking: Tracking::default(),
            place: place(),
        });
        ix
    }
}

fn rule(
    direction: &str,
    group: GroupIx,
    position: usize,
    traffic: Traffic,
    peer: Peer,
) -> SecurityGroupRule {
    SecurityGroupRule {
        id: RuleId::derive(&[direction, &group.ix().to_string(), &position.to_string()]),
        traffic,
        peer,
        peer_text: String::new(),
        description: String::new(),
        place: place(),
    }
}

fn entry(number: u16, action: AclAction, traffic: Traffic, cidr: &str) -> AclEntry {
    AclEntry {
        number,
        action,
        traffic,
        cidr: cidr.parse().unwrap(),
        place: place(),
    }
}

fn allow(number: u16, traffic: Traffic, cidr: &str) -> AclEntry {
    entry(number, AclAction::Allow, traffic, cidr)
}

fn deny(number: u16, traffic: Traffic, cidr: &str) -> AclEntry {
    entry(number, AclAction::Deny, traffic, cidr)
}

fn place() -> Place {
    Place::implied(Arc::from("test"))
}
