use simple_dns::rdata::{A, AAAA, CNAME, RData};
use simple_dns::{CLASS, Name, Packet, PacketFlag, RCODE, ResourceRecord};

use super::*;

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn settings(resolv_conf: &str) -> Arc<Settings> {
    let scope = |name: &str| (name == "eth0").then_some(7);
    Arc::new(Settings::parse(resolv_conf.as_bytes(), b"", scope))
}

fn lookup(name: &str, resolv_conf: &str) -> Lookup {
    let families = [Family::V4, Family::V6];
    let mut lookup = Lookup::new(name, settings(resolv_conf), &families, 1, ms(0));
    lookup.act(ms(0));
    lookup
}

/// Returns the queries sent now, with the name and type of each.
fn sent(lookup: &mut Lookup) -> Vec<(Outgoing, String)> {
    let text = |it: &Outgoing| {
        let question = Packet::parse(&it.message).unwrap().questions.remove(0);
        let tcp = if it.over_tcp { " tcp" } else { "" };
        format!("{} {} {:?}{tcp}", it.server, question.qname, question.qtype)
    };
    let outgoing = lookup.take_outgoing();
    outgoing
        .into_iter()
        .map(|it| (it.clone(), text(&it)))
        .collect()
}

fn texts(sent: &[(Outgoing, String)]) -> Vec<&str> {
    sent.iter().map(|(_, text)| text.as_str()).collect()
}

/// A record of a response: owner, TTL and data.
type Record = (&'static str, u32, RData<'static>);

fn v4(owner: &'static str, ttl: u32, last: u8) -> Record {
    let address = u32::from_be_bytes([10, 0, 0, last]);
    (owner, ttl, RData::A(A { address }))
}

fn v6(owner: &'static str, ttl: u32, address: u128) -> Record {
    (owner, ttl, RData::AAAA(AAAA { address }))
}

fn alias(owner: &'static str, ttl: u32, target: &'static str) -> Record {
    (owner, ttl, RData::CNAME(CNAME(Name::new(target).unwrap())))
}

/// Returns the response to a query. `change` may corrupt it.
fn reply(question: &[u8], records: &[Record], change: impl FnOnce(&mut Packet<'_>)) -> Vec<u8> {
    let mut packet = Packet::parse(question).unwrap().into_reply();
    packet.set_flags(PacketFlag::RECURSION_AVAILABLE);
    for (owner, ttl, data) in records {
        let owner = Name::new(owner).unwrap();
        packet
            .answers
            .push(ResourceRecord::new(owner, CLASS::IN, *ttl, data.clone()));
    }
    change(&mut packet);
    packet.build_bytes_vec_compressed().unwrap()
}

fn refusal(code: RCODE) -> impl Fn(&mut Packet<'_>) {
    move |packet| *packet.rcode_mut() = code
}

/// Answers a query that was sent.
fn answer(lookup: &mut Lookup, to: &Outgoing, records: &[Record]) {
    let message = reply(&to.message, records, |_| {});
    lookup.hear(to.server, &message, to.over_tcp, ms(1));
}

fn found(lookup: &mut Lookup) -> Vec<(String, u64)> {
    let found = lookup.take_found();
    found
        .iter()
        .map(|(it, ttl)| (it.to_string(), ttl.as_secs()))
        .collect()
}

#[test]
fn both_families_are_asked_for_at_once_and_a_ttl_is_that_of_the_whole_chain() {
    let mut lookup = lookup("web", "nameserver 10.0.0.2");
    let asked = sent(&mut lookup);
    assert_eq!(texts(&asked), ["0 web TYPE(A)", "0 web TYPE(AAAA)"]);
    // In another order, and in mixed case.
    let records = [
        v4("LB.example", 60, 9),
        alias("Web", 300, "a.example"),
        v4("other", 5, 66),
        alias("a.example", 20, "lb.example"),
        v4("lb.example", 30, 8),
    ];
    answer(&mut lookup, &asked[0].0, &records);
    let both = [("10.0.0.9".to_owned(), 20), ("10.0.0.8".to_owned(), 20)];
    assert_eq!(found(&mut lookup), both);
    assert_eq!(lookup.ended(), None);
    answer(&mut lookup, &asked[1].0, &[v6("web", u32::MAX, 1)]);
    assert_eq!(found(&mut lookup), [("::1".to_owned(), 0)], "RFC 2181 §8");
    assert_eq!(lookup.ended(), Some(&End::Found(ms(0))));
}

#[test]
fn one_family_is_told_of_at_once_and_the_other_waited_for_a_while() {
    let mut lookup = lookup("web", "nameserver 10.0.0.2");
    let asked = sent(&mut lookup);
    answer(&mut lookup, &asked[0].0, &[v4("web", 60, 9)]);
    assert_eq!(found(&mut lookup).len(), 1);
    while lookup.ended().is_none() {
        assert!(lookup.due() <= ms(1) + OTHER_FAMILY);
        lookup.act(lookup.due());
        assert!(
            texts(&sent(&mut lookup))
                .iter()
                .all(|it| it.contains("AAAA"))
        );
    }
    assert_eq!(lookup.ended(), Some(&End::Found(ms(60_000))));
}

#[test]
fn a_silent_resolver_ends_a_lookup_within_its_time_whatever_resolv_conf_says() {
    for (conf, rounds) in [
        ("nameserver 10.0.0.2", vec![0; 4]),
        (
            "nameserver 10.0.0.2\nnameserver 10.0.0.3",
            vec![0, 1, 0, 1, 0, 1],
        ),
        ("nameserver 10.0.0.2\noptions timeout:1 attempts:1", vec![0]),
        ("options timeout:30 attempts:9", vec![0; 4]),
    ] {
        let mut lookup = lookup("web", conf);
        let mut servers = Vec::new();
        let mut now = ms(0);
        while lookup.ended().is_none() {
            let asked = sent(&mut lookup);
            servers.extend(asked.chunks(2).map(|pair| pair[0].0.server));
            now = lookup.due();
            lookup.act(now);
        }
        assert_eq!(servers, rounds, "{conf}");
        assert!(now <= MAX_LOOKUP, "{conf}: {now:?}");
        assert!(matches!(lookup.ended(), Some(End::Failed(_))), "{conf}");
    }
    let rotated = lookup(
        "web",
        "nameserver 10.0.0.2\nnameserver 10.0.0.3\noptions rotate",
    );
    assert_eq!(
        rotated.servers()[0],
        SocketAddr::from(([10, 0, 0, 3], PORT))
    );
}

#[test]
fn names_are_searched_for_as_resolv_conf_says() {
    for (name, conf, order) in [
        (
            "web",
            "search x.test y.test",
            ["web.x.test", "web.y.test", "web"],
        ),
        (
            "web",
            "search x.test y.test\noptions ndots:0",
            ["web", "web.x.test", "web.y.test"],
        ),
        (
            "a.b",
            "domain x.test\nsearch x.test. y.test",
            ["a.b", "a.b.x.test", "a.b.y.test"],
        ),
        (
            "a.b",
            "search x.test y.test\noptions ndots:2",
            ["a.b.x.test", "a.b.y.test", "a.b"],
        ),
    ] {
        let mut lookup = lookup(name, conf);
        for (at, candidate) in order.iter().enumerate() {
            let asked = sent(&mut lookup);
            assert_eq!(asked[0].1, format!("0 {candidate} TYPE(A)"), "{conf}");
            // The first fails, the second has no address, the third doesn't exist.
            for (message, _) in &asked {
                let code = [RCODE::ServerFailure, RCODE::NoError, RCODE::NameError][at];
                let message = reply(&message.message, &[], refusal(code));
                lookup.hear(0, &message, false, ms(1));
            }
            lookup.act(ms(1));
        }
        // Because one query failed, the result is unknown.
        assert!(matches!(lookup.ended(), Some(End::Failed(why)) if why.contains("SERVFAIL")));
    }
}

#[test]
fn a_name_without_any_address_is_told_apart_from_a_failure() {
    let end = |first: RCODE, second: RCODE| {
        let mut lookup = lookup("web", "nameserver 10.0.0.2");
        for ((message, _), code) in sent(&mut lookup).iter().zip([first, second]) {
            let message = reply(&message.message, &[], refusal(code));
            lookup.hear(0, &message, false, ms(1));
        }
        lookup.ended().cloned()
    };
    assert!(matches!(
        end(RCODE::NameError, RCODE::NameError),
        Some(End::Nothing(_))
    ));
    assert!(matches!(
        end(RCODE::NoError, RCODE::NoError),
        Some(End::Nothing(_))
    ));
    assert!(matches!(
        end(RCODE::NoError, RCODE::Refused),
        Some(End::Failed(_))
    ));
    assert!(matches!(
        end(RCODE::ServerFailure, RCODE::NameError),
        Some(End::Failed(_))
    ));
}

#[test]
fn a_server_that_refuses_gives_way_to_the_next_at_once() {
    let mut lookup = lookup("web", "nameserver 10.0.0.2\nnameserver 10.0.0.3");
    let asked = sent(&mut lookup);
    lookup.fail(0, "Connection refused", ms(5));
    assert_eq!(lookup.due(), ms(5));
    lookup.act(ms(5));
    let again = sent(&mut lookup);
    assert_eq!(texts(&again), ["1 web TYPE(A)", "1 web TYPE(AAAA)"]);
    // A late response from the first server counts as well.
    answer(&mut lookup, &asked[0].0, &[v4("web", 60, 9)]);
    lookup.hear(1, &reply(&again[1].0.message, &[], |_| {}), false, ms(6));
    assert_eq!(lookup.ended(), Some(&End::Found(ms(60_000))));
}

#[test]
fn a_truncated_answer_is_asked_for_over_tcp() {
    let mut lookup = lookup("web", "nameserver 10.0.0.2");
    let asked = sent(&mut lookup);
    let truncated = |packet: &mut Packet<'_>| packet.set_flags(PacketFlag::TRUNCATION);
    let message = reply(&asked[0].0.message, &[v4("web", 60, 9)], truncated);
    for _ in 0..2 {
        lookup.hear(0, &message, false, ms(1));
    }
    let again = sent(&mut lookup);
    assert_eq!(texts(&again), ["0 web TYPE(A) tcp"], "once");
    assert!(found(&mut lookup).is_empty());
    answer(&mut lookup, &again[0].0, &[v4("web", 60, 8)]);
    assert_eq!(found(&mut lookup).len(), 1);
}

#[test]
fn only_answers_to_the_question_count() {
    let mut lookup = lookup("web", "nameserver 10.0.0.2");
    let asked = sent(&mut lookup);
    let question = &asked[0].0.message;
    let records = [v4("web", 60, 66)];
    let id = Packet::parse(question).unwrap().id();
    let spoiled: [&dyn Fn(&mut Packet<'_>); 6] = [
        &|it| it.set_id(id.wrapping_add(1)),
        &|it| it.remove_flags(PacketFlag::RESPONSE),
        &|it| it.questions.clear(),
        &|it| it.questions.push(it.questions[0].clone()),
        &|it| it.questions[0].qname = Name::new_unchecked("wed"),
        &|it| it.questions[0].qtype = simple_dns::TYPE::TXT.into(),
    ];
    for spoil in spoiled {
        lookup.hear(0, &reply(question, &records, spoil), false, ms(1));
    }
    let whole = reply(question, &records, |_| {});
    for length in 0..whole.len() {
        lookup.hear(0, &whole[..length], false, ms(1));
    }
    assert!(found(&mut lookup).is_empty());
    lookup.hear(0, &whole, false, ms(1));
    assert_eq!(found(&mut lookup).len(), 1);
}

#[test]
fn aliases_that_lead_nowhere_end() {
    for (records, is_refused) in [
        (vec![alias("web", 1, "web")], true),
        (vec![alias("web", 1, "b"), alias("b", 1, "web")], true),
        (vec![alias("web", 1, "b"), v4("c", 1, 66)], false),
    ] {
        let mut lookup = lookup("web", "nameserver 10.0.0.2");
        for (message, _) in sent(&mut lookup) {
            answer(&mut lookup, &message, &records);
        }
        assert!(found(&mut lookup).is_empty());
        let end = lookup.ended().unwrap();
        assert_eq!(matches!(end, End::Failed(_)), is_refused, "{end:?}");
    }
}

#[test]
fn hostile_messages_do_no_harm() {
    let mut lookup = lookup("web", "nameserver 10.0.0.2");
    let question = sent(&mut lookup)[0].0.message.clone();
    let whole = reply(&question, &[alias("web", 1, "b"), v4("b", 1, 66)], |_| {});
    for at in 2..whole.len() {
        for value in [0, 1, 11, 0x3f, 0x40, 0x80, 0xc0, 0xff] {
            let mut spoiled = whole.clone();
            spoiled[at] = value;
            let id = u16::from_be_bytes([question[0], question[1]]);
            // The meaning may differ, but parsing must not panic.
            let _ = dns::answer(&spoiled, id, "web", Family::V4);
        }
    }
}

#[test]
fn files_are_read_as_the_workload_reads_them() {
    let conf =
        b"# c\nnameserver 127.0.0.11\n nameserver fe80::1%eth0 # x\nnameserver fe80::2%gone\n\
        nameserver nonsense\nnonsense \xff\nnameserver ::1\nnameserver 10.0.0.9\nsearch . X.test\n\
        options ndots:99 timeout:0 attempts:x nonsense";
    let hosts =
        b"10.0.0.1 web Web.test. # db\n\xff\nnonsense web\nfd00::1%x web\nfd00::1\tweb\n10.0.0.3";
    let scope = |name: &str| (name == "eth0").then_some(7);
    let settings = Settings::parse(conf, hosts, scope);
    let servers: Vec<_> = settings.servers.iter().map(ToString::to_string).collect();
    assert_eq!(servers, ["127.0.0.11:53", "[fe80::1%7]:53", "[::1]:53"]);
    assert_eq!(settings.search, ["x.test"]);
    assert_eq!((settings.ndots, settings.attempts), (15, 2));
    assert_eq!(settings.timeout, ms(1000));
    let in_hosts = |name: &str| match settings.in_hosts(name) {
        Some(Answer::Found(found)) => found.iter().map(|it| it.0.to_string()).collect(),
        _ => Vec::new(),
    };
    assert_eq!(in_hosts("web"), ["10.0.0.1", "fd00::1"]);
    assert_eq!(in_hosts("web.test"), ["10.0.0.1"]);
    assert!(in_hosts("db").is_empty());
    let none = Settings::parse(b"", b"", |_| None);
    assert_eq!(none.servers, [SocketAddr::from(([127, 0, 0, 1], PORT))]);
}
