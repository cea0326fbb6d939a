//! Namespaces, devices and run-state.

use std::fs;
use std::net::UdpSocket;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use sgwall::lab::{Lab, LabError, Privilege, Session, prepare};
use sgwall::link::{Envelope, Link};
use sgwall::model::{EntityIx, EntityKind, Model};
use sgwall::packet::Shape;

use super::common::{
    add_entity, add_interface, empty_model, many_entities, three_entities, udp4, unique_name,
};
use super::support::{Background, bound, ip, look, receive, receive_now, serve, socket_in, up};

pub fn each_entity_has_its_namespace_device_and_routes() {
    let model = three_entities();
    let lab = up(&model);
    for (i, entity) in model.entities.iter().enumerate() {
        let namespace = lab.namespace(EntityIx::new(i));
        assert_eq!(namespace.entity(), entity.name);
        assert_eq!(
            namespace.path().is_some(),
            lab.privilege() == Privilege::Root
        );
        if let Some(path) = namespace.path() {
            let expected = format!("/run/netns/sgwall-{}-{}", lab.session().name(), entity.name);
            assert_eq!(path, Path::new(&expected));
            assert!(path.exists());
        }
    }
    let web = look(&lab, "web");
    assert_eq!(web.devices, ["eth0", "lo"]);
    assert_eq!(web.mtu, "9001");
    assert!(web.local4.contains("10.0.1.10"), "{}", web.local4);
    // Its subnet's prefix, /20, and a default route.
    assert!(
        web.route4.contains("eth0\t00000000\t00000000"),
        "{}",
        web.route4
    );
    assert!(
        web.route4
            .contains("eth0\t0000000A\t00000000\t0001\t0\t0\t0\t00F0FFFF"),
        "{}",
        web.route4
    );
    // Global scope, permanent, no duplicate address detection; no link-local.
    let v6: Vec<&str> = web
        .if_inet6
        .lines()
        .filter(|line| line.contains("eth0"))
        .collect();
    assert_eq!(v6.len(), 1, "{}", web.if_inet6);
    assert!(
        v6[0].starts_with("fd000000000000010000000000000010 "),
        "{}",
        v6[0]
    );
    assert!(v6[0].contains(" 40 00 82 "), "{}", v6[0]);
    let default6 = format!("{0} 00 {0} 00 {0} 00000400", "0".repeat(32));
    assert!(
        web.route6
            .lines()
            .any(|line| line.starts_with(&default6) && line.ends_with("eth0")),
        "{}",
        web.route6
    );

    let db = look(&lab, "db");
    assert!(!db.if_inet6.contains("eth0"), "{}", db.if_inet6);
    assert!(
        !db.route6
            .lines()
            .any(|line| line.starts_with(&default6) && line.ends_with("eth0")),
        "{}",
        db.route6
    );

    // Hosts outside have no subnet: /32 and /128.
    let laptop = look(&lab, "laptop");
    assert_eq!(laptop.route4.lines().count(), 2, "{}", laptop.route4);
    assert!(
        laptop
            .if_inet6
            .lines()
            .any(|line| line.contains("20010db8") && line.contains(" 80 00 82 ")),
        "{}",
        laptop.if_inet6
    );

    // The caller itself is in none of them.
    let inodes: Vec<String> = lab
        .namespaces()
        .iter()
        .map(|n| format!("net:[{}]", n.inode()))
        .collect();
    let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
    assert!(!inodes.iter().any(|inode| Path::new(inode) == own));
}

pub fn a_frame_from_a_socket_reaches_the_link() {
    let model = three_entities();
    let lab = up(&model);
    let socket = socket_in(&lab, &model, "web");
    socket.send_to(b"to db", "10.0.16.20:5432").unwrap();
    let port = socket.local_addr().unwrap().port();
    let packet = receive(&lab.links()[0]).expect("no packet");
    let expected = udp4((ip("10.0.1.10"), port), (ip("10.0.16.20"), 5432), b"to db");
    // The kernel chooses identification and flags of its own.
    assert_eq!(packet.len(), expected.len());
    assert_eq!(packet[12..24], expected[12..24]);
    assert_eq!(packet[28..], *b"to db");

    // IPv6 leaves by the default route too, and as large as the MTU allows.
    let (web, _) = model.entity("web").unwrap();
    let socket = lab
        .namespace(web)
        .run(|| UdpSocket::bind("[::]:0"))
        .unwrap()
        .unwrap();
    socket.send_to(&[7; 8953], "[2001:db8::7]:9").unwrap();
    let packet = receive(&lab.links()[0]).expect("no packet");
    assert_eq!((packet.len(), packet[0] >> 4), (9001, 6));
    assert!(
        receive(&lab.links()[1]).is_none(),
        "a link has another entity's packets"
    );
}

pub fn a_packet_on_the_link_reaches_a_socket() {
    let model = three_entities();
    let lab = up(&model);
    let socket = socket_in(&lab, &model, "db");
    let port = socket.local_addr().unwrap().port();
    let packet = udp4(
        (ip("10.0.1.10"), 4000),
        (ip("10.0.16.20"), port),
        b"from web",
    );
    lab.links()[1]
        .send(Envelope::NONE, &packet, Shape::Whole)
        .unwrap();
    let mut buffer = [0; 64];
    let (count, from) = socket.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..count], b"from web");
    assert_eq!(from.to_string(), "10.0.1.10:4000");
}

pub fn an_idle_lab_sends_nothing() {
    let lab = up(&three_entities());
    // Router solicitations and group reports come within the first second.
    thread::sleep(Duration::from_millis(1500));
    for link in lab.links() {
        let heard = receive_now(&link);
        assert!(heard.is_none(), "the kernel sent {heard:02x?}");
    }
}

pub fn replies_leave_by_the_interface_that_has_their_source() {
    let mut model = empty_model();
    add_entity(&mut model, "proxy", EntityKind::Ec2);
    add_interface(&mut model, Some(0), &["10.0.0.10", "fd00:0:0:1::10"]);
    add_interface(&mut model, Some(1), &["10.0.16.10", "fd00:0:0:2::10"]);
    add_interface(&mut model, Some(1), &["10.0.16.11", "fd00:0:0:2::11"]);
    let lab = up(&model);
    let links = lab.links();
    let targets4 = ["198.51.100.7:9", "10.0.0.99:9", "10.0.16.99:9"];
    let targets6 = [
        "[2001:db8::1]:9",
        "[fd00:0:0:1::99]:9",
        "[fd00:0:0:2::99]:9",
    ];
    for (device, interface) in model.interfaces.iter().enumerate() {
        for (address, targets) in interface.addresses.iter().zip([targets4, targets6]) {
            let source = address.private;
            let socket = lab.namespaces()[0]
                .run(|| UdpSocket::bind((source, 0)))
                .unwrap()
                .unwrap();
            for target in targets {
                socket.send_to(b"x", target).unwrap();
                let heard: Vec<bool> = links
                    .iter()
                    .map(|link| receive_now(link).is_some())
                    .collect();
                let expected: Vec<bool> = (0..3).map(|other| other == device).collect();
                assert_eq!(heard, expected, "{source} to {target}");
            }
        }
    }
    // Without a source of its own choosing: the subnet's device, or eth0.
    let socket = lab.namespaces()[0]
        .run(|| UdpSocket::bind("0.0.0.0:0"))
        .unwrap()
        .unwrap();
    for (target, device) in targets4.into_iter().zip([0, 0, 1]) {
        socket.send_to(b"x", target).unwrap();
        assert!(receive_now(&links[device]).is_some(), "{target}");
    }
}

pub fn down_leaves_nothing() {
    let lab = up(&three_entities());
    let name = lab.session().name().to_owned();
    let dir = lab.session().dir().to_owned();
    let serving = serve(&lab);
    assert!(dir.join("control.sock").exists());
    drop(serving);
    lab.down();
    assert!(!dir.exists());
    assert_eq!(bound(&name), Vec::<PathBuf>::new());
    assert!(!Session::list().unwrap().iter().any(|lab| lab.name == name));
}

pub fn down_ends_the_processes_inside_and_no_others() {
    let model = three_entities();
    let lab = up(&model);
    let start = |script: &str| Background::start(Command::new("sh").args(["-c", script]));
    let (web, _) = model.entity("web").unwrap();
    let namespace = lab.namespace(web);
    let mut obedient = namespace.run(|| start("exec sleep 1000")).unwrap();
    let mut stubborn = namespace
        .run(|| start("trap '' TERM; while :; do sleep 1; done"))
        .unwrap();
    let mut outside = start("exec sleep 1000");
    let begun = Instant::now();
    lab.down();
    assert!(
        begun.elapsed() < Duration::from_secs(3),
        "{:?}",
        begun.elapsed()
    );
    assert!(obedient.has_ended() && stubborn.has_ended());
    assert!(!outside.has_ended(), "a process outside was ended");
}

pub fn a_failure_half_way_leaves_nothing() {
    for spoil in [
        // The kernel refuses an MTU below 68.
        (|model: &mut Model| model.interfaces[2].mtu = 10) as fn(&mut Model),
        // And an address twice.
        |model: &mut Model| {
            let again = model.interfaces[1].addresses[0];
            model.interfaces[1].addresses.push(again);
        },
        // A name that would leave /run/netns.
        |model: &mut Model| model.entities[2].name = "../x".into(),
        // A device name that no device can have twice.
        |model: &mut Model| add_interface(model, None, &["198.51.100.9"]),
    ] {
        let mut model = three_entities();
        spoil(&mut model);
        if model.interfaces.len() == 4 {
            model.interfaces[3].device = 0;
        }
        let name = unique_name();
        let session = Session::start(&name).unwrap();
        let dir = session.dir().to_owned();
        let error = Lab::up(session, &model).expect_err("the model is spoilt");
        println!("  {error}");
        assert!(!dir.exists());
        assert_eq!(bound(&name), Vec::<PathBuf>::new());
    }
}

pub fn a_panic_leaves_nothing() {
    let name = unique_name();
    let answer = catch_unwind(AssertUnwindSafe(|| {
        let _lab = Lab::up(Session::start(&name).unwrap(), &three_entities()).unwrap();
        std::panic::resume_unwind(Box::new("as if a worker had panicked"));
    }));
    assert!(answer.is_err());
    assert_eq!(bound(&name), Vec::<PathBuf>::new());
    assert!(!Session::list().unwrap().iter().any(|lab| lab.name == name));
}

pub fn a_lab_has_one_owner() {
    let name = unique_name();
    let session = Session::start(&name).unwrap();
    let error = Session::start(&name)
        .expect_err("a second owner")
        .to_string();
    let pid = std::process::id();
    assert_eq!(
        error,
        format!("lab '{name}' is already running as pid {pid}; stop it or choose --name")
    );
    let found = Session::find(Some(&name)).unwrap();
    assert_eq!((found.pid, &*found.dir), (pid, session.dir()));
    drop(session);
    assert!(matches!(
        Session::find(Some(&name)),
        Err(LabError::NoneRunning { .. } | LabError::NotRunning { .. })
    ));
    Session::start(&name).unwrap();
}

pub fn two_labs_whose_names_run_together_do_not_mix() {
    if prepare().unwrap() != Privilege::Root {
        println!("  root only: nothing to do");
        return;
    }
    let with = |name: &str| {
        let mut model = empty_model();
        add_entity(&mut model, name, EntityKind::Ec2);
        add_interface(&mut model, Some(0), &["10.0.0.10"]);
        model
    };
    let name = unique_name();
    let first = Lab::up(Session::start(&name).unwrap(), &with("a-b")).unwrap();
    let second = Session::start(&format!("{name}-a")).unwrap();
    let error = Lab::up(second, &with("b")).expect_err("the same name twice");
    assert!(matches!(error, LabError::NamespaceTaken { .. }), "{error}");
    // Removing the namespace would break the running lab.
    let text = error.to_string();
    assert!(
        text.contains(&format!("belongs to lab '{name}'")) && !text.contains("delete"),
        "{text}"
    );
    assert!(
        first.namespaces()[0].path().unwrap().exists(),
        "the first lab lost its namespace"
    );
    drop(first);
    assert_eq!(bound(&name), Vec::<PathBuf>::new());
}

pub fn a_panic_in_a_namespace_is_an_error() {
    let lab = up(&three_entities());
    let answer: Result<(), _> = lab.namespaces()[0].run(|| std::panic::resume_unwind(Box::new(())));
    assert!(matches!(answer, Err(LabError::Panicked { .. })));
}

pub fn two_hundred_entities_come_up_quickly() {
    let model = many_entities(200);
    let name = unique_name();
    let begun = Instant::now();
    let lab = Lab::up(Session::start(&name).unwrap(), &model).unwrap();
    let up = begun.elapsed();
    assert_eq!(lab.links().len(), 200);
    let last = look(&lab, "host-199");
    assert!(last.local4.contains("10.0.1.199"), "{}", last.local4);
    let begun = Instant::now();
    lab.down();
    let down = begun.elapsed();
    println!("  200 entities: up in {up:?}, down in {down:?}");
    assert_eq!(bound(&name), Vec::<PathBuf>::new());
    assert!(up < Duration::from_secs(10) && down < Duration::from_secs(10));
}
