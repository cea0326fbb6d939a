//! The bodies of the fuzz targets, over the inputs that fuzzing kept and some
//! thousand mutations of those: the same ones every time, and nothing that
//! takes long. `scripts/fuzz` looks longer, guided by coverage.
#![allow(
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "tests report by printing and fail by panicking"
)]

use std::fs;
use std::path::{Path, PathBuf};

#[path = "../fuzz/src/lib.rs"]
mod bodies;

/// Mutations of each target's inputs.
const MUTATIONS: usize = 4000;

#[test]
fn frames_hold_over_kept_and_mutated_inputs() {
    hold("frames");
}

#[test]
fn structured_frames_hold_over_kept_and_mutated_inputs() {
    hold("structured_frames");
}

#[test]
fn lab_files_hold_over_kept_and_mutated_inputs() {
    hold("lab_files");
}

#[test]
fn lists_of_packets_hold_over_kept_and_mutated_inputs() {
    hold("packets_txt");
}

#[test]
fn super_packets_hold_over_kept_and_mutated_inputs() {
    hold("vnet");
}

#[test]
fn ethernet_frames_hold_over_kept_and_mutated_inputs() {
    hold("ethernet");
}

#[test]
fn every_target_has_a_program_and_inputs_and_a_test() {
    let mut programs: Vec<String> = fs::read_dir("fuzz/targets")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    programs.sort();
    let mut targets: Vec<&str> = bodies::TARGETS.iter().map(|(name, _)| *name).collect();
    targets.sort_unstable();
    assert_eq!(programs, targets);
    let this = fs::read_to_string(file!()).unwrap();
    for target in targets {
        assert!(!kept(target).is_empty(), "{target}");
        assert!(this.contains(&format!("hold(\"{target}\")")), "{target}");
    }
}

/// The inputs are committed, and read by every run of the tests.
#[test]
fn the_kept_inputs_stay_small() {
    let all = bodies::TARGETS.iter().flat_map(|(name, _)| kept(name));
    let bytes: u64 = all.map(|path| path.metadata().unwrap().len()).sum();
    assert!(bytes < 1 << 20, "{bytes} bytes");
}

#[test]
#[ignore = "writes files; `scripts/fuzz --keep` runs it"]
fn structured_inputs_as_frames() {
    let directory = |variable: &str| PathBuf::from(std::env::var_os(variable).unwrap());
    let to = directory("SGWALL_FUZZ_TO");
    fs::create_dir_all(&to).unwrap();
    for entry in fs::read_dir(directory("SGWALL_FUZZ_FROM")).unwrap() {
        let entry = entry.unwrap();
        let frames = bodies::as_frames(&fs::read(entry.path()).unwrap());
        fs::write(to.join(entry.file_name()), frames).unwrap();
    }
}

fn hold(target: &str) {
    let (_, body) = bodies::TARGETS
        .iter()
        .find(|(name, _)| *name == target)
        .unwrap();
    let mut seeds = Vec::new();
    for path in inputs(target) {
        let input = fs::read(&path).unwrap();
        let _name_it = Failing(|| path.display().to_string());
        body(&input);
        seeds.push(input);
    }
    body(&[]);
    let mut chance = Chance(0x5eed);
    for number in 0..MUTATIONS {
        let input = mutated(&mut chance, &seeds);
        let _name_it = Failing(|| format!("{target}, mutation {number}: {input:02x?}"));
        body(&input);
    }
}

/// The kept inputs of a target, and the files that are inputs besides.
fn inputs(target: &str) -> Vec<PathBuf> {
    let mut paths = kept(target);
    if target == "lab_files" {
        paths.extend(files(Path::new("configs")));
        paths.extend(files(Path::new("fuzz/labs")));
    }
    paths
}

fn kept(target: &str) -> Vec<PathBuf> {
    files(&Path::new("fuzz/corpus").join(target))
}

/// The files of a directory, in order.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths
}

/// Says which input it was that failed.
struct Failing<F: Fn() -> String>(F);

impl<F: Fn() -> String> Drop for Failing<F> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed: {}", (self.0)());
        }
    }
}

/// Some input with a few changes.
fn mutated(chance: &mut Chance, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut input = seeds[chance.below(seeds.len())].clone();
    for _ in 0..=chance.below(4) {
        let at = chance.below(input.len() + 1);
        let end = (at + 1 + chance.below(16)).min(input.len());
        match chance.below(6) {
            0 if at < end => input[at] ^= 1 << chance.below(8),
            1 if at < end => input[at] = u8::try_from(chance.below(256)).unwrap(),
            2 => drop(input.drain(at..end)),
            3 => {
                let piece = input[at..end].to_vec();
                input.splice(at..at, piece);
            }
            4 => input.truncate(at),
            _ => {
                let other = &seeds[chance.below(seeds.len())];
                let from = chance.below(other.len() + 1);
                let to = (from + chance.below(64)).min(other.len());
                input.splice(at..end, other[from..to].iter().copied());
            }
        }
    }
    input
}

/// Numbers that look random and are the same every time: xorshift64*
/// (Vigna, 2016).
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let drawn = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        usize::try_from(drawn).unwrap() % end.max(1)
    }
}
