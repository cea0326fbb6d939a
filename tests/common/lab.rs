//! Small models, built by hand, and what tests of labs need around them.
#![allow(dead_code, reason = "each test target uses a part")]

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use sgwall::model::{
    Address, Attachment, Entity, EntityIx, EntityKind, GroupIx, Interface, Model, Place,
    SecurityGroup, Subnet, SubnetIx, Tracking, Via, Vpc,
};

/// A lab name that no other test has.
pub fn unique_name() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("t{}-{number}", std::process::id())
}

/// A VPC with two subnets of both families and nobody in it.
pub fn empty_model() -> Model {
    let place = Place::implied("test".into());
    let subnet = |name: &str, v4: &str, v6: &str| Subnet {
        id: format!("subnet-{name}"),
        name: name.into(),
        cidrs: vec![v4.parse().unwrap(), v6.parse().unwrap()],
        network_acl: Default::default(),
        route_table: Default::default(),
        place: place.clone(),
    };
    Model {
        vpc: Vpc {
            id: "vpc-test".into(),
            cidrs: vec![
                "10.0.0.0/16".parse().unwrap(),
                "fd00:0:0::/48".parse().unwrap(),
            ],
            icmp_errors: Default::default(),
        },
        subnets: vec![
            subnet("one", "10.0.0.0/20", "fd00:0:0:1::/64"),
            subnet("two", "10.0.16.0/24", "fd00:0:0:2::/64"),
        ],
        security_groups: vec![Arc::new(SecurityGroup {
            id: "sg-default".into(),
            name: "default".into(),
            description: String::new(),
            ingress: Vec::new(),
            egress: Vec::new(),
            place: place.clone(),
        })],
        ..Model::default()
    }
}

/// Adds an entity without interfaces.
pub fn add_entity(model: &mut Model, name: &str, kind: EntityKind) -> EntityIx {
    let entity = EntityIx::new(model.entities.len());
    model.entities.push(Entity {
        name: name.into(),
        kind,
        engine: None,
        run: None,
        max_flows: None,
        place: Place::implied("test".into()),
    });
    entity
}

/// Adds an interface to the last entity: in the subnet of that number, or
/// outside.
pub fn add_interface(model: &mut Model, subnet: Option<usize>, addresses: &[&str]) {
    let entity = EntityIx::new(model.entities.len() - 1);
    let device = model.interfaces_of(entity).count().try_into().unwrap();
    let attachment = match (subnet, model.entities[entity.ix()].kind) {
        (Some(subnet), _) => Attachment::Subnet {
            subnet: SubnetIx::new(subnet),
            groups: vec![GroupIx::new(0)],
        },
        (None, EntityKind::External(via)) => Attachment::External(via),
        (None, _) => panic!("only external hosts are outside of all subnets"),
    };
    model.interfaces.push(Interface {
        id: format!("eni-{}", model.interfaces.len()),
        entity,
        device,
        attachment,
        addresses: addresses
            .iter()
            .map(|address| Address {
                private: address.parse().unwrap(),
                public: None,
            })
            .collect(),
        mtu: 9001,
        source_dest_check: true,
        tracking: Tracking::default(),
        place: Place::implied("test".into()),
    });
}

/// Three entities: `web` and `db` in the VPC, `laptop` on the internet.
pub fn three_entities() -> Model {
    let mut model = empty_model();
    add_entity(&mut model, "web", EntityKind::Ec2);
    add_interface(&mut model, Some(0), &["10.0.1.10", "fd00:0:0:1::10"]);
    model.interfaces[0].addresses[0].public = Some("203.0.113.10".parse().unwrap());
    add_entity(&mut model, "db", EntityKind::Rds);
    add_interface(&mut model, Some(1), &["10.0.16.20"]);
    add_entity(&mut model, "laptop", EntityKind::External(Via::Igw));
    add_interface(&mut model, None, &["198.51.100.7", "2001:db8::7"]);
    model
}

/// `count` entities with both families.
pub fn many_entities(count: u16) -> Model {
    let mut model = empty_model();
    for number in 0..count {
        add_entity(&mut model, &format!("host-{number}"), EntityKind::Ec2);
        let [high, low] = (256 + number).to_be_bytes();
        let v4 = format!("10.0.{high}.{low}");
        let v6 = format!("fd00:0:0:1::{high:x}:{low:x}");
        add_interface(&mut model, Some(0), &[&v4, &v6]);
    }
    model
}

/// An IPv4 UDP packet with correct checksums.
pub fn udp4(from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (from.0, to.0) else {
        panic!("IPv4 only");
    };
    let mut packet = Vec::new();
    etherparse::PacketBuilder::ipv4(source.octets(), destination.octets(), 64)
        .udp(from.1, to.1)
        .write(&mut packet, payload)
        .unwrap();
    packet
}
