//! Engines that are wrong on purpose, each in one way that has been got wrong
//! before by somebody. A property that lets one of them pass proves nothing.
//!
//! Each is the oracle in disguise: fed a bent model, a bent packet or a bent
//! clock, or with its judgement bent afterwards.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sgwall::model::{
    Attachment, IcmpMatch, Model, Peer, PortRange, PrefixListIx, RuleId, SecurityGroup,
    SecurityGroupRule, Traffic,
};
use sgwall::policy::DropReason;
use sgwall::policy::oracle::{Admission, Judgement, Oracle, Packet, Payload, TcpFlags};

use crate::harness::{Engine, Maker};

/// Every broken engine with the name of what is wrong with it.
pub fn all() -> Vec<(&'static str, Maker)> {
    vec![
        ("port ranges end one early", |m| bent(m, ports_end_early)),
        ("port ranges begin one early", |m| {
            bent(m, ports_begin_early)
        }),
        ("ingress rules are ignored", |m| bent(m, ingress_open)),
        ("only the first group counts", |m| bent(m, first_group_only)),
        ("groups in the wrong order", |m| bent(m, groups_reversed)),
        ("groups cover public addresses", |m| {
            bent(m, groups_cover_public)
        }),
        ("groups never cover their own members", |m| {
            bent(m, no_self_reference)
        }),
        ("only the first prefix list entry counts", |m| {
            bent(m, first_entry_only)
        }),
        ("/31 blocks match as /32", |m| bent(m, pairs_as_hosts)),
        ("ICMP codes are ignored", |m| bent(m, codes_ignored)),
        ("the source check is never off", |m| {
            bent(m, check_always_on)
        }),
        ("MTU off by one", |m| bent(m, mtu_one_more)),
        ("established connections last 1 ms too long", |m| {
            bent(m, established_longer)
        }),
        ("UDP streams last 1 ms too long", |m| bent(m, stream_longer)),
        ("secondary addresses are forgotten", |m| {
            bent(m, primary_only)
        }),
        ("every packet is mid-stream TCP", |m| {
            disguised(m, without_flags)
        }),
        ("a reset does not close", |m| disguised(m, without_reset)),
        ("FIN does not close", |m| disguised(m, without_fin)),
        ("echo identifiers are ignored", |m| {
            disguised(m, without_echo_id)
        }),
        ("no address translation", |m| {
            Box::new(NoTranslation(oracle(m)))
        }),
        ("one flow table for everybody", |m| {
            Box::new(OneTable {
                oracle: oracle(m),
                passed: HashSet::new(),
            })
        }),
        ("a rule change forgets flows", |m| {
            Box::new(Forgetful(oracle(m)))
        }),
        ("a rule change is ignored", |m| Box::new(Deaf(oracle(m)))),
        ("flows never expire", |m| Box::new(Timeless(oracle(m)))),
    ]
}

/// The oracle over a bent model.
struct Bent {
    oracle: Oracle,
    bend: fn(&mut Model),
}

impl Engine for Bent {
    fn replace_model(&mut self, model: &Model) {
        let mut model = model.clone();
        (self.bend)(&mut model);
        self.oracle.replace_model(model);
    }

    fn judge(&mut self, packet: &Packet, now: Duration) -> Judgement {
        self.oracle.judge(packet, now)
    }
}

/// The oracle over bent packets.
struct Disguised {
    oracle: Oracle,
    bend: fn(&mut Payload),
}

impl Engine for Disguised {
    fn replace_model(&mut self, model: &Model) {
        self.oracle.replace_model(model.clone());
    }

    fn judge(&mut self, packet: &Packet, now: Duration) -> Judgement {
        let mut packet = *packet;
        (self.bend)(&mut packet.payload);
        self.oracle.judge(&packet, now)
    }
}

struct NoTranslation(Oracle);

impl Engine for NoTranslation {
    fn replace_model(&mut self, model: &Model) {
        self.0.replace_model(model.clone());
    }

    fn judge(&mut self, packet: &Packet, now: Duration) -> Judgement {
        let mut judgement = self.0.judge(packet, now);
        if let Judgement::Delivered {
            source,
            destination,
            ..
        } = &mut judgement
        {
            (*source, *destination) = (packet.source, packet.destination);
        }
        judgement
    }
}

/// Lets pass whatever belongs to a 5-tuple that passed anywhere before.
struct OneTable {
    oracle: Oracle,
    passed: HashSet<[(IpAddr, u16); 2]>,
}

impl Engine for OneTable {
    fn replace_model(&mut self, model: &Model) {
        self.oracle.replace_model(model.clone());
    }

    fn judge(&mut self, packet: &Packet, now: Duration) -> Judgement {
        let judgement = self.oracle.judge(packet, now);
        let (Payload::Tcp {
            source_port,
            destination_port,
            ..
        }
        | Payload::Udp {
            source_port,
            destination_port,
        }) = packet.payload
        else {
            return judgement;
        };
        let mut ends = [
            (packet.source, source_port),
            (packet.destination, destination_port),
        ];
        ends.sort();
        match judgement {
            Judgement::Dropped {
                reason: DropReason::NoIngressRule,
                at,
            } if !self.passed.insert(ends) => Judgement::Delivered {
                to: at,
                source: packet.source,
                destination: packet.destination,
                egress: Some(Admission::Flow),
                ingress: Some(Admission::Flow),
            },
            Judgement::Delivered { .. } => {
                self.passed.insert(ends);
                judgement
            }
            Judgement::Dropped { .. } => judgement,
        }
    }
}

struct Forgetful(Oracle);

impl Engine for Forgetful {
    fn replace_model(&mut self, model: &Model) {
        self.0 = Oracle::new(model.clone());
    }

    fn judge(&mut self, packet: &Packet, now: Duration) -> Judgement {
        self.0.judge(packet, now)
    }
}

struct Deaf(Oracle);

impl Engine for Deaf {
    fn replace_model(&mut self, _model: &Model) {}

    fn judge(&mut self, packet: &Packet, now: Duration) -> Judgement {
        self.0.judge(packet, now)
    }
}

struct Timeless(Oracle);

impl Engine for Timeless {
    fn replace_model(&mut self, model: &Model) {
        self.0.replace_model(model.clone());
    }

    fn judge(&mut self, packet: &Packet, _now: Duration) -> Judgement {
        self.0.judge(packet, Duration::ZERO)
    }
}

fn oracle(model: &Model) -> Oracle {
    Oracle::new(model.clone())
}

fn bent(model: &Model, bend: fn(&mut Model)) -> Box<dyn Engine> {
    let mut engine = Bent {
        oracle: oracle(model),
        bend,
    };
    engine.replace_model(model);
    Box::new(engine)
}

fn disguised(model: &Model, bend: fn(&mut Payload)) -> Box<dyn Engine> {
    Box::new(Disguised {
        oracle: oracle(model),
        bend,
    })
}

fn ports_end_early(model: &mut Model) {
    each_range(model, |range| {
        if range.from < range.to {
            range.to -= 1;
        }
    });
}

fn ports_begin_early(model: &mut Model) {
    each_range(model, |range| range.from = range.from.saturating_sub(1));
}

fn ingress_open(model: &mut Model) {
    for group in &mut model.security_groups {
        for peer in [
            Peer::Ipv4(Ipv4Net::default()),
            Peer::Ipv6(Ipv6Net::default()),
        ] {
            group.ingress.push(SecurityGroupRule {
                id: RuleId(1),
                traffic: Traffic::All,
                peer,
                peer_text: String::new(),
                description: String::new(),
                place: group.place.clone(),
            });
        }
    }
}

fn first_group_only(model: &mut Model) {
    each_membership(model, |groups| groups.truncate(1));
}

fn groups_reversed(model: &mut Model) {
    each_membership(model, |groups| groups.reverse());
}

fn groups_cover_public(model: &mut Model) {
    replace_group_peers(model, |model, group| {
        let mut entries = Vec::new();
        for interface in &model.interfaces {
            if interface.groups().contains(&group) {
                for address in &interface.addresses {
                    entries.push(address.private);
                    entries.extend(address.public.map(IpAddr::V4));
                }
            }
        }
        entries
    });
}

fn no_self_reference(model: &mut Model) {
    for (ix, group) in model.security_groups.iter_mut().enumerate() {
        let other = |rule: &SecurityGroupRule| !matches!(rule.peer, Peer::Group(g) if g.ix() == ix);
        group.ingress.retain(other);
        group.egress.retain(other);
    }
}

fn first_entry_only(model: &mut Model) {
    for list in &mut model.prefix_lists {
        list.entries.truncate(1);
    }
}

fn pairs_as_hosts(model: &mut Model) {
    each_rule(model, |rule| {
        if let Peer::Ipv4(block) = &mut rule.peer
            && block.prefix_len() == 31
        {
            *block = Ipv4Net::from(block.network());
        }
    });
}

fn codes_ignored(model: &mut Model) {
    each_rule(model, |rule| {
        if let Traffic::Icmp(icmp) | Traffic::Icmpv6(icmp) = &mut rule.traffic
            && let IcmpMatch::TypeAndCode(kind, _) = *icmp
        {
            *icmp = IcmpMatch::Type(kind);
        }
    });
}

fn check_always_on(model: &mut Model) {
    for interface in &mut model.interfaces {
        interface.source_dest_check = true;
    }
}

fn mtu_one_more(model: &mut Model) {
    for interface in &mut model.interfaces {
        interface.mtu += 1;
    }
}

fn established_longer(model: &mut Model) {
    for interface in &mut model.interfaces {
        interface.tracking.tcp_established += Duration::from_millis(1);
    }
}

fn stream_longer(model: &mut Model) {
    for interface in &mut model.interfaces {
        interface.tracking.udp_stream += Duration::from_millis(1);
    }
}

/// Forgets second addresses where groups are resolved, nowhere else.
fn primary_only(model: &mut Model) {
    replace_group_peers(model, |model, group| {
        model
            .interfaces
            .iter()
            .filter(|interface| interface.groups().contains(&group))
            .filter_map(|interface| Some(interface.addresses.first()?.private))
            .collect()
    });
}

fn without_flags(payload: &mut Payload) {
    if let Payload::Tcp { flags, .. } = payload {
        *flags = TcpFlags::default();
    }
}

fn without_reset(payload: &mut Payload) {
    if let Payload::Tcp { flags, .. } = payload {
        flags.rst = false;
    }
}

fn without_fin(payload: &mut Payload) {
    if let Payload::Tcp { flags, .. } = payload {
        flags.fin = false;
    }
}

fn without_echo_id(payload: &mut Payload) {
    if let Payload::IcmpEcho { id, .. } = payload {
        *id = 0;
    }
}

/// Turns every reference to a group into a prefix list of its members, as
/// `members` sees them.
fn replace_group_peers(
    model: &mut Model,
    members: impl Fn(&Model, sgwall::model::GroupIx) -> Vec<IpAddr>,
) {
    let first = model.prefix_lists.len();
    for ix in 0..model.security_groups.len() {
        let entries = members(model, sgwall::model::GroupIx::new(ix));
        model.prefix_lists.push(sgwall::model::PrefixList {
            id: format!("pl-members-{ix}"),
            name: format!("members{ix}"),
            entries: entries.into_iter().map(IpNet::from).collect(),
            place: model.security_groups[ix].place.clone(),
        });
    }
    each_rule(model, |rule| {
        if let Peer::Group(group) = rule.peer {
            rule.peer = Peer::PrefixList(PrefixListIx::new(first + group.ix()));
        }
    });
}

fn each_rule(model: &mut Model, mut change: impl FnMut(&mut SecurityGroupRule)) {
    for SecurityGroup {
        ingress, egress, ..
    } in &mut model.security_groups
    {
        ingress.iter_mut().chain(egress).for_each(&mut change);
    }
}

fn each_range(model: &mut Model, change: impl Fn(&mut PortRange)) {
    each_rule(model, |rule| {
        if let Traffic::Tcp(range) | Traffic::Udp(range) = &mut rule.traffic
            && *range != PortRange::ALL
        {
            change(range);
        }
    });
}

fn each_membership(model: &mut Model, change: impl Fn(&mut Vec<sgwall::model::GroupIx>)) {
    for interface in &mut model.interfaces {
        if let Attachment::Subnet { groups, .. } = &mut interface.attachment {
            change(groups);
        }
    }
}
