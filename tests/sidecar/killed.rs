//! Runs that end at any moment, as by `kill -9`: what is left passes nothing, and is all that the
//! next run needs.

use std::time::Duration;

use sgwall::sidecar::{Wanted, give_back, give_back_watched, take_watched, verify};

use super::netlink::{self, look};
use super::support::{
    Ear, Echo, GATEWAY, Network, SECRET, address, address6, arp_request, ip, mac, open_tap,
    send_frame, stop, take_all, take_until,
};
use super::take::{manifold, settings};

/// More changes than any run makes.
const ENOUGH: usize = 1000;

/// After each change: the world asks by ARP and UDP, and the workload sends by sockets and by
/// frames. Devices are renamed on the way, which on newer kernels parts them from their hooks.
pub fn nothing_passes_at_any_moment_of_being_taken() {
    let network = Network::new();
    let space = network.container(10);
    let _echo = Echo::start(&space);
    assert!(network.reaches(address(10)) && network.reaches(address6(10)));
    let own = space.run(|| mac("eth0"));
    let bridge = network.space.run(|| mac("br0"));
    let ear = Ear::new(&network.space);
    let mut changes = 0;
    let mut try_all = || {
        changes += 1;
        if changes == 1 {
            // What was sent before the device was closed.
            while ear.hears_from(own, Duration::from_millis(20)).is_some() {}
        }
        network.space.run(|| {
            let frame = arp_request(bridge, ip(GATEWAY), address(10));
            send_frame("br0", &frame, None).unwrap();
            let socket = std::net::UdpSocket::bind("[::]:0").unwrap();
            let _ = socket.send_to(b"in", (address6(10), 7));
        });
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let _ = socket.send_to(b"out", (ip(GATEWAY), 9));
        for device in ["eth0", "sgw-eth0"] {
            if nix::net::if_::if_nametoindex(device).is_ok() {
                let frame = arp_request(own, address(10), ip(GATEWAY));
                let _ = send_frame(device, &frame, None);
            }
        }
        let heard = ear.hears_from(own, Duration::from_millis(15));
        assert_eq!(heard, None, "after change {changes}");
    };
    let taken =
        space.run(|| take_watched(&Wanted::default(), SECRET, open_tap, &mut try_all).unwrap());
    assert!(changes > 10, "{changes}");
    drop(taken);
}

pub fn an_interface_is_taken_again_whenever_the_run_before_was_killed() {
    let network = Network::new();
    let names = ["eth0", "eth1"];
    let space = manifold(&network);
    let _echo = Echo::start(&space);
    let (before, set) = space.run(|| (look(&names), settings()));
    let mut changes = 1;
    while take_until(&space, changes) {
        let again = space.try_run(|| {
            let taken = take_all().unwrap();
            assert_eq!(look(&names), before);
            assert_eq!(settings(), set);
            verify(&taken, SECRET).unwrap();
            drop(taken);
            give_back().unwrap();
            assert_eq!(look(&names), before);
        });
        assert!(again.is_ok(), "after change {changes}");
        changes += 1;
        assert!(changes < ENOUGH);
    }
    assert!(changes > 10, "{changes}");
    println!("killed after each of {changes} changes");
}

pub fn an_interface_is_given_back_whenever_the_run_before_was_killed() {
    let network = Network::new();
    let names = ["eth0", "eth1"];
    let space = manifold(&network);
    let (before, set) = space.run(|| (look(&names), settings()));
    let mut changes = 1;
    while take_until(&space, changes) {
        let back = space.try_run(|| {
            give_back().unwrap();
            assert_eq!(look(&names), before);
            assert_eq!(settings(), set);
        });
        assert!(back.is_ok(), "after change {changes}");
        changes += 1;
        assert!(changes < ENOUGH);
    }
}

pub fn giving_back_may_be_killed_too() {
    let network = Network::new();
    let names = ["eth0", "eth1"];
    let space = manifold(&network);
    let before = space.run(|| look(&names));
    for changes in 1..ENOUGH {
        space.run(|| drop(take_all().unwrap()));
        let mut left = changes;
        let ended = space.try_run(|| give_back_watched(&mut || stop(&mut left)).unwrap());
        if ended.is_ok() {
            assert!(changes > 10);
            space.run(|| assert_eq!(look(&names), before));
            return;
        }
        let again = space.try_run(|| {
            if changes % 2 == 0 {
                let taken = take_all().unwrap();
                assert_eq!(look(&names), before);
                verify(&taken, SECRET).unwrap();
            }
            give_back().unwrap();
            assert_eq!(look(&names), before);
        });
        assert!(again.is_ok(), "after change {changes}");
    }
    panic!("it never ends");
}

/// As when a network is disconnected and connected again while no sidecar runs.
pub fn a_device_that_is_gone_is_forgotten() {
    let network = Network::new();
    let space = network.container(10);
    network.connect(&space, "eth1");
    let _echo = Echo::start(&space);
    space.run(|| {
        drop(take_all().unwrap());
        netlink::delete(netlink::index("sgw-eth0"));
    });
    network.connect(&space, "eth0");
    space.run(|| {
        netlink::add_address(netlink::index("eth0"), address(20), 16, None);
        netlink::add_address(netlink::index("eth0"), address6(20), 64, None);
    });
    // A new device under a name that was let through is as closed as any.
    assert!(network.is_cut_off_from(address(20)) && network.is_cut_off_from(address6(20)));
    let taken = space.run(|| take_all().unwrap());
    assert_eq!(taken.interfaces.len(), 2);
    space.run(|| {
        verify(&taken, SECRET).unwrap();
        drop(taken);
        let mut back = give_back().unwrap();
        back.sort();
        assert_eq!(back, ["eth0", "eth1"]);
    });
    assert!(network.reaches(address(20)) && network.reaches(address6(20)));
}
