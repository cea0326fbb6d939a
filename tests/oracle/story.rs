//! What a failure prints, and what it leaves behind: the lab files and the list
//! of packets that `sgwall replay` takes.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use sgwall::model::Model;
use sgwall::policy::oracle::{Admission, Judgement};

use crate::harness::Failed;
use crate::render::render;
use crate::wire::Frame;

/// One thing that happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// This model took over, or was there at the start.
    Model(Model, Duration),
    /// A packet was sent, and this is what should become of it.
    Packet(Frame, Duration, Judgement),
}

/// The story of a failure in words. Writes its files, and says where.
pub fn tell(failed: &Failed) -> String {
    let failure = match failed {
        Failed::Parted(failure) => failure,
        Failed::Otherwise(why) => return why.clone(),
    };
    let mut out = "the engine and the oracle part\n".to_owned();
    let mut model = None;
    for event in &failure.events {
        match event {
            Event::Model(new, now) => {
                let _ = write!(out, "{now:?} ---\n{}---\n", render(new));
                model = Some(new);
            }
            Event::Packet(frame, now, judgement) => {
                let line = model.map_or_else(String::new, |model| expectation(model, judgement));
                let _ = writeln!(out, "{now:?} {}\n    {line}", frame.packet);
            }
        }
    }
    let _ = write!(
        out,
        "oracle: {:?}\nengine: {:?}\n",
        failure.expected, failure.judged
    );
    if failure.capacity < 100 {
        let _ = writeln!(
            out,
            "the table had room for {} flows, which a replay doesn't know",
            failure.capacity
        );
    }
    match leave(&failure.events) {
        Ok(at) => {
            let at = at.display();
            let _ = write!(
                out,
                "to see it: cargo run -- replay {at}/lab.yaml {at}/packets.txt\n\
                 to keep it: cp -r {at} tests/regressions/NAME\n"
            );
        }
        Err(error) => {
            let _ = writeln!(out, "its files can't be written: {error}");
        }
    }
    out
}

/// Writes the files of a case into a directory of its own under `target/`.
fn leave(events: &[Event]) -> io::Result<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let at = (0..)
        .map(|nth| target.join(format!("failure-{nth}")))
        .find(|at| !at.exists())
        .expect("numbers don't end");
    fs::create_dir_all(&at)?;
    write_case(&at, events)?;
    // Relative to where cargo is run, if it is in there.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(at.strip_prefix(root).map_or(at.clone(), Path::to_owned))
}

/// Writes `lab.yaml`, `lab-1.yaml` and so on, and `packets.txt`.
pub fn write_case(at: &Path, events: &[Event]) -> io::Result<()> {
    let mut packets = String::new();
    let mut models: Vec<&Model> = Vec::new();
    for event in events {
        match event {
            Event::Model(model, now) => {
                let name = match models.len() {
                    0 => "lab.yaml".to_owned(),
                    nth => format!("lab-{nth}.yaml"),
                };
                if !models.is_empty() {
                    let _ = writeln!(packets, "{} @ {name}", seconds(*now));
                }
                fs::write(at.join(name), render(model))?;
                models.push(model);
            }
            Event::Packet(frame, now, judgement) => {
                let Some(model) = models.last() else { continue };
                let mut hex = String::new();
                for byte in &frame.bytes {
                    let _ = write!(hex, "{byte:02x}");
                }
                let _ = writeln!(
                    packets,
                    "# {}\n{} {} {hex} = {}",
                    frame.packet,
                    seconds(*now),
                    model.interface_label(frame.packet.from),
                    expectation(model, judgement)
                );
            }
        }
    }
    fs::write(at.join("packets.txt"), packets)
}

/// A judgement as a list of packets expects it.
pub fn expectation(model: &Model, judgement: &Judgement) -> String {
    let by = |admission: &Option<Admission>| match admission {
        None => "none",
        Some(Admission::Rule(_)) => "rule",
        Some(Admission::Flow) => "flow",
    };
    match judgement {
        Judgement::Held { .. } => "held".into(),
        Judgement::Dropped { reason, at } => {
            format!("dropped {reason} at {}", model.interface_label(*at))
        }
        Judgement::Delivered { to, packet, .. } if packet.is_later_fragment() => {
            format!("delivered to {}", model.interface_label(*to))
        }
        Judgement::Delivered {
            to,
            egress,
            ingress,
            ..
        } => format!(
            "delivered to {} (out by {}, in by {})",
            model.interface_label(*to),
            by(egress),
            by(ingress)
        ),
    }
}

fn seconds(time: Duration) -> String {
    format!("{}.{:03}", time.as_secs(), time.subsec_millis())
}
