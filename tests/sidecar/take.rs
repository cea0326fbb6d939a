//! What taking an interface over promises the workload, and what it denies it.

use std::net::{IpAddr, SocketAddr, SocketAddrV6, UdpSocket};
use std::process::Command;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use sgwall::sidecar::{SidecarError, Wanted, close, give_back, take, verify};

use super::netlink::{self, Way, look};
use super::support::{
    Ear, Echo, GATEWAY, MOMENT, Network, PATIENCE, SECRET, Secret, Space, address, address6,
    arp_request, asks, ip, mac, open_tap, send_frame, take_all,
};

/// A container with everything that an interface can have.
pub fn manifold(network: &Network) -> Space {
    let space = network.container(10);
    network.connect(&space, "eth1");
    space.run(|| {
        let (eth0, eth1) = (netlink::index("eth0"), netlink::index("eth1"));
        netlink::set_mtu(eth0, 1400);
        netlink::add_address(eth0, address(11), 16, None);
        netlink::add_address(eth0, ip("10.77.0.5"), 24, Some("eth0:more"));
        netlink::add_address(eth0, address6(11), 64, None);
        netlink::add_address(eth0, ip("fd77::5"), 128, None);
        netlink::add_address(eth1, ip("10.88.0.5"), 24, None);
        // One that somebody removed must not come back.
        netlink::delete_connected((ip("10.77.0.0"), 24), eth0);
        let via = |gateway: &str, index| vec![(Some(ip(gateway)), index)];
        for way in [
            // This one needs the next, which is listed after it.
            Way {
                to: Some((ip("10.1.0.0"), 16)),
                via: via("10.2.0.9", eth0),
                ..Way::default()
            },
            Way {
                to: Some((ip("192.168.5.0"), 24)),
                via: via(GATEWAY, eth0),
                metric: Some(50),
                ..Way::default()
            },
            Way {
                to: Some((ip("192.168.6.0"), 24)),
                via: vec![(None, eth0)],
                table: Some(1234),
                ..Way::default()
            },
            Way {
                to: Some((ip("192.168.7.0"), 24)),
                via: via("172.31.9.9", eth0),
                onlink: true,
                ..Way::default()
            },
            Way {
                to: Some((ip("192.168.8.0"), 24)),
                via: vec![(Some(ip(GATEWAY)), eth0), (Some(ip("10.88.0.1")), eth1)],
                ..Way::default()
            },
            Way {
                to: Some((ip("fd99::"), 48)),
                via: via("fd28::9", eth0),
                metric: Some(77),
                ..Way::default()
            },
            Way {
                to: Some((ip("fd9a::"), 48)),
                via: vec![(None, eth0)],
                table: Some(1234),
                ..Way::default()
            },
        ] {
            if way.to == Some((ip("10.1.0.0"), 16)) {
                netlink::add_route(&Way {
                    to: Some((ip("10.2.0.9"), 32)),
                    via: vec![(None, eth0)],
                    ..Way::default()
                });
            }
            netlink::add_route(&way);
        }
        netlink::add_neighbour(eth0, address(200), [2, 0, 0, 0, 0, 200]);
        netlink::add_neighbour(eth0, address6(200), [2, 0, 0, 0, 0, 200]);
        for setting in ["rp_filter", "arp_ignore"] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/eth0/{setting}"), "2").unwrap();
        }
        std::fs::write("/proc/sys/net/ipv6/conf/eth0/accept_ra", "0").unwrap();
    });
    space
}

pub fn settings() -> Vec<String> {
    [
        "ipv4/conf/eth0/rp_filter",
        "ipv4/conf/eth0/arp_ignore",
        "ipv6/conf/eth0/accept_ra",
    ]
    .map(|path| std::fs::read_to_string(format!("/proc/sys/net/{path}")).unwrap())
    .to_vec()
}

pub fn a_taken_interface_is_as_it_was() {
    let network = Network::new();
    let space = manifold(&network);
    space.run(|| {
        let names = ["eth0", "eth1"];
        let (before, set) = (look(&names), settings());
        let (own_mac, raw_index) = (mac("eth0"), netlink::index("eth0"));
        let taken = take_all().unwrap();
        assert_eq!(look(&names), before);
        assert_eq!(settings(), set);
        verify(&taken, SECRET).unwrap();

        let [eth0, eth1] = &taken.interfaces[..] else {
            panic!("{taken:?}");
        };
        assert_eq!((&*eth0.name, &*eth0.raw_name), ("eth0", "sgw-eth0"));
        assert_eq!((&*eth1.name, &*eth1.raw_name), ("eth1", "sgw-eth1"));
        assert_eq!((eth0.mac, eth0.mtu), (own_mac, 1400));
        assert_eq!(eth0.raw_index, raw_index);
        assert_eq!(eth0.index, netlink::index("eth0"));
        assert_eq!(netlink::index("sgw-eth0"), raw_index);
        let has = |net: &str| eth0.addresses.contains(&net.parse().unwrap());
        assert!(has("172.28.0.10/16") && has("fd28::10/64") && has("10.77.0.5/24"));
        assert!(
            eth0.addresses
                .iter()
                .any(|net| net.addr().to_string().starts_with("fe80::"))
        );
        assert!(taken.left_open.is_empty());

        // Another secret than the one in force is noticed, and so is an opened chain.
        assert!(matches!(
            verify(&taken, other()),
            Err(SidecarError::NotClosed { .. })
        ));
    });
}

pub fn an_interface_given_back_is_as_it_was() {
    let network = Network::new();
    let space = manifold(&network);
    let _echo = Echo::start(&space);
    assert!(network.reaches(address(10)));
    space.run(|| {
        let names = ["eth0", "eth1"];
        let (before, set) = (look(&names), settings());
        drop(take_all().unwrap());
        let mut names_back = give_back().unwrap();
        names_back.sort();
        assert_eq!(names_back, names);
        assert_eq!(look(&names), before);
        assert_eq!(settings(), set);
        // Where nothing was taken there is nothing to give back.
        assert!(give_back().unwrap().is_empty());
    });
    assert!(network.reaches(address(10)) && network.reaches(address6(10)));
}

pub fn nothing_is_answered_while_an_interface_is_only_taken() {
    let network = Network::new();
    let space = network.container(10);
    let _echo = Echo::start(&space);
    let link_local = space.run(link_local);
    assert!(network.reaches(address(10)) && network.reaches(address6(10)));
    let own = space.run(|| mac("eth0"));
    let taken = space.run(|| take_all().unwrap());
    let ear = Ear::new(&network.space);
    assert!(network.is_cut_off_from(address(10)));
    assert!(network.is_cut_off_from(address6(10)));
    network.space.run(|| {
        let scope = netlink::index("br0");
        let socket = UdpSocket::bind("[::]:0").unwrap();
        let to = SocketAddrV6::new(link_local, 7, 0, scope);
        let _ = socket.send_to(b"anybody?", SocketAddr::V6(to));
        send_frame(
            "br0",
            &arp_request(mac("br0"), ip(GATEWAY), address(10)),
            None,
        )
        .unwrap();
    });
    assert_eq!(ear.hears_from(own, 3 * MOMENT), None);
    drop(taken);
    // The process is gone, and everything is as closed as before.
    assert!(network.is_cut_off_from(address(10)) && network.is_cut_off_from(address6(10)));
}

pub fn only_frames_that_bear_the_secret_leave() {
    let network = Network::new();
    let space = network.container(10);
    let own = space.run(|| mac("eth0"));
    let ear = Ear::new(&network.space);
    let frame = arp_request(own, address(10), ip(GATEWAY));
    let send = |secret| space.run(|| send_frame("sgw-eth0", &frame, secret));
    let taken = space.run(|| take_all().unwrap());
    ear.clear();
    let half = |mark, priority| Some(Secret { mark, priority });
    for secret in [
        None,
        half(0, 0),
        half(SECRET.mark, 0),
        half(0, SECRET.priority),
        half(SECRET.mark + 1, SECRET.priority),
        half(SECRET.mark, SECRET.priority + 1),
        half(SECRET.priority, SECRET.mark),
        half(u32::MAX, u32::MAX),
    ] {
        let _ = send(secret);
        assert_eq!(ear.hears_from(own, MOMENT), None, "{secret:?}");
    }
    send(Some(SECRET)).unwrap();
    assert!(ear.hears_from(own, MOMENT).is_some());
    // A new run has a new secret, and the old one is worth nothing.
    drop(taken);
    let wanted = Wanted::default();
    let _taken = space.run(|| take(&wanted, other(), open_tap).unwrap());
    ear.clear();
    let _ = send(Some(SECRET));
    assert_eq!(ear.hears_from(own, MOMENT), None);
    send(Some(other())).unwrap();
    assert!(ear.hears_from(own, MOMENT).is_some());
}

/// A secret that is another in half of it.
fn other() -> Secret {
    Secret {
        priority: SECRET.priority ^ 1,
        ..SECRET
    }
}

pub fn a_socket_bound_to_the_raw_device_leaks_nothing() {
    let network = Network::new();
    let space = network.container(10);
    let own = space.run(|| mac("eth0"));
    let _taken = space.run(|| take_all().unwrap());
    let ear = Ear::new(&network.space);
    space.run(|| {
        for (any, to) in [
            ("0.0.0.0:0", ip(GATEWAY)),
            ("0.0.0.0:0", ip("255.255.255.255")),
            ("0.0.0.0:0", ip("224.0.0.1")),
            ("[::]:0", ip("fd28::1")),
            ("[::]:0", ip("ff02::1")),
        ] {
            let socket = UdpSocket::bind(any).unwrap();
            setsockopt(&socket, sockopt::BindToDevice, &"sgw-eth0".into()).unwrap();
            let _ = setsockopt(&socket, sockopt::Broadcast, &true);
            for _ in 0..3 {
                let _ = socket.send_to(b"out", (to, 9));
            }
        }
    });
    assert_eq!(ear.hears_from(own, 2 * MOMENT), None);
}

pub fn the_raw_device_has_no_address_of_its_own() {
    let network = Network::new();
    let space = network.container(10);
    let _taken = space.run(|| take_all().unwrap());
    // Longer than the kernel takes to make a link-local address.
    std::thread::sleep(Duration::from_millis(1500));
    space.run(|| {
        let mut raw = look(&["sgw-eth0"]);
        // Groups are no address.
        raw.retain(|line| !line.contains("kind: Multicast"));
        assert_eq!(raw.len(), 1, "{raw:#?}");
        assert!(raw[0].starts_with("link up=true"), "{raw:#?}");
    });
}

pub fn sockets_that_listen_before_go_on() {
    let network = Network::new();
    let space = network.container(10);
    let any = space.run(|| UdpSocket::bind(("::", 99)).unwrap());
    let own = space.run(|| UdpSocket::bind((address(10), 98)).unwrap());
    let own6 = space.run(|| UdpSocket::bind((address6(10), 97)).unwrap());
    let taken = space.run(|| take_all().unwrap());
    space.run(|| {
        for (socket, to, port) in [
            (&any, address(10), 99),
            (&any, address6(10), 99),
            (&own, address(10), 98),
            (&own6, address6(10), 97),
        ] {
            let asker = UdpSocket::bind(("::", 0)).unwrap();
            asker.send_to(b"hello", (mapped(to), port)).unwrap();
            let mut buffer = [0; 16];
            socket
                .set_read_timeout(Some(Duration::from_secs(2)))
                .unwrap();
            let (length, _) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"hello");
        }
    });
    drop(taken);
}

pub fn an_interface_that_appears_later_passes_nothing() {
    let network = Network::new();
    let space = network.container(10);
    let _echo = Echo::start(&space);
    let taken = space.run(|| take_all().unwrap());
    network.connect(&space, "eth1");
    let ear = Ear::new(&network.space);
    let own = space.run(|| {
        let index = netlink::index("eth1");
        netlink::add_address(index, address(12), 16, None);
        netlink::add_address(index, address6(12), 64, None);
        mac("eth1")
    });
    let ipv4 = |frame: &[u8]| frame[6..12] == own && frame[12..14] == [8, 0];
    let ipv6 = |frame: &[u8]| frame[6..12] == own && frame[12..14] == [0x86, 0xdd];
    assert!(network.is_cut_off_from(address(12)));
    assert!(network.is_cut_off_from(address6(12)));
    space.run(|| {
        for (any, to) in [("0.0.0.0:0", ip(GATEWAY)), ("[::]:0", ip("ff02::1"))] {
            let socket = UdpSocket::bind(any).unwrap();
            setsockopt(&socket, sockopt::BindToDevice, &"eth1".into()).unwrap();
            let _ = socket.send_to(b"out", (to, 9));
        }
    });
    assert_eq!(ear.hears(MOMENT, |frame| ipv4(frame) || ipv6(frame)), None);
    if taken.closes_frames_of_later_interfaces {
        network.space.run(|| {
            let frame = arp_request(mac("br0"), ip(GATEWAY), address(12));
            send_frame("br0", &frame, None).unwrap();
        });
        let frame = arp_request(own, address(12), ip(GATEWAY));
        for secret in [None, Some(SECRET)] {
            let _ = space.run(|| send_frame("eth1", &frame, secret));
        }
        assert_eq!(ear.hears_from(own, 2 * MOMENT), None);
    } else {
        eprintln!("this kernel closes later interfaces to IPv4 and IPv6 alone");
    }
    // The next run takes it as well.
    drop(taken);
    space.run(|| {
        let taken = take_all().unwrap();
        let names: Vec<_> = taken.interfaces.iter().map(|this| &*this.name).collect();
        assert_eq!(names, ["eth0", "eth1"]);
        verify(&taken, SECRET).unwrap();
    });
}

pub fn interfaces_that_are_not_named_stay_open() {
    let network = Network::new();
    let space = network.container(10);
    network.connect(&space, "eth1");
    let _echo = Echo::start(&space);
    space.run(|| netlink::add_address(netlink::index("eth1"), ip("10.88.0.5"), 24, None));
    network
        .space
        .run(|| netlink::add_address(netlink::index("br0"), ip("10.88.0.1"), 24, None));
    let only = |name: &str| Wanted {
        only: vec![name.to_owned()],
    };
    let taken = space.run(|| take(&only("eth0"), SECRET, open_tap).unwrap());
    assert_eq!(taken.left_open, ["eth1"]);
    assert_eq!(taken.interfaces.len(), 1);
    assert!(network.is_cut_off_from(address(10)));
    assert!(network.reaches(ip("10.88.0.5")));
}

pub fn what_cannot_be_taken_is_said() {
    let network = Network::new();
    let space = network.container(10);
    space.run(|| {
        let wanted = Wanted {
            only: vec!["eth7".into()],
        };
        let error = take(&wanted, SECRET, open_tap).unwrap_err().to_string();
        assert_eq!(error, "no interface 'eth7' here; there is eth0");

        // A device without Ethernet that is up, but not one that is down.
        let mut tunnel = tun::Configuration::default();
        tunnel.tun_name("vpn0");
        tunnel.platform_config(|platform| {
            platform.ensure_root_privileges(false);
        });
        let tunnel = tun::Device::new(&tunnel).unwrap();
        drop(take_all().unwrap());
        give_back().unwrap();
        netlink::set_up(netlink::index("vpn0"), true);
        let error = take_all().unwrap_err().to_string();
        assert!(error.contains("vpn0 is no Ethernet interface"), "{error}");
        assert!(error.ends_with("with --interface eth0"), "{error}");
        let wanted = Wanted {
            only: vec!["eth0".into()],
        };
        let taken = take(&wanted, SECRET, open_tap).unwrap();
        assert_eq!(taken.left_open, ["vpn0"]);
        drop((taken, tunnel));

        let taken = take_all().unwrap();
        let error = take_all().unwrap_err();
        assert!(
            matches!(&error, SidecarError::AlreadyTaken { name } if name == "eth0"),
            "{error}"
        );
        assert!(matches!(
            give_back(),
            Err(SidecarError::AlreadyTaken { .. })
        ));
        verify(&taken, SECRET).unwrap();
        drop(taken);

        let refuse = |_: &str| -> std::io::Result<()> { Err(std::io::Error::from_raw_os_error(2)) };
        let error = take(&Wanted::default(), SECRET, refuse)
            .unwrap_err()
            .to_string();
        assert!(error.contains("--device /dev/net/tun"), "{error}");
    });
    let error = Space::new().run(|| take_all().unwrap_err().to_string());
    assert!(error.contains("no interface to take"), "{error}");
}

pub fn a_closed_namespace_passes_nothing_until_it_is_taken_and_given_back() {
    let network = Network::new();
    let space = network.container(10);
    let _echo = Echo::start(&space);
    let own = space.run(|| mac("eth0"));
    space.run(|| {
        close().unwrap();
        assert!(asks(ip("127.0.0.1"), PATIENCE) && asks(address(10), PATIENCE));
        assert!(!asks(ip(GATEWAY), MOMENT));
    });
    let ear = Ear::new(&network.space);
    ear.clear();
    network.connect(&space, "eth1");
    assert!(network.is_cut_off_from(address(10)) && network.is_cut_off_from(address6(10)));
    assert_eq!(ear.hears_from(own, MOMENT), None);
    let taken = space.run(|| take_all().unwrap());
    space.run(|| {
        close().unwrap();
        verify(&taken, SECRET).unwrap();
    });
    drop(taken);
    space.run(|| give_back().unwrap());
    assert!(network.reaches(address(10)) && network.reaches(address6(10)));
}

/// Docker's resolver is reached by rules of Docker's in the container's namespace.
pub fn other_tables_are_left_alone() {
    let network = Network::new();
    let space = network.container(10);
    let _echo = Echo::start_at(&space, ip("127.0.0.11"));
    let rules = "table ip nat {
        chain output { type nat hook output priority -100; ip daddr 127.0.0.11 udp dport 53 dnat to 127.0.0.11:7; }
        chain postrouting { type nat hook postrouting priority 100; ip saddr 127.0.0.11 udp sport 7 snat to :53; }
    }";
    space.run(|| {
        let there = Command::new("nft").arg(rules).status();
        if !there.is_ok_and(|status| status.success()) {
            eprintln!("no nft here, so no rules as Docker's are tried");
            return;
        }
        let resolves = || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket
                .set_read_timeout(Some(Duration::from_secs(1)))
                .unwrap();
            socket.send_to(b"name?", "127.0.0.11:53").unwrap();
            let mut buffer = [0; 16];
            socket
                .recv_from(&mut buffer)
                .map(|(_, from)| from.to_string())
        };
        assert_eq!(resolves().unwrap(), "127.0.0.11:53");
        let taken = take_all().unwrap();
        assert_eq!(resolves().unwrap(), "127.0.0.11:53");
        drop(taken);
        give_back().unwrap();
        assert_eq!(resolves().unwrap(), "127.0.0.11:53");
    });
}

fn link_local() -> std::net::Ipv6Addr {
    let text = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
    let line = text
        .lines()
        .find(|line| line.starts_with("fe80") && line.ends_with("eth0"));
    let bits = u128::from_str_radix(&line.unwrap()[..32], 16).unwrap();
    bits.into()
}

fn mapped(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().into(),
        IpAddr::V6(_) => address,
    }
}
