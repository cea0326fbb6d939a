//! What stands in `deploy/` can be read by those whom it is for, as far as that
//! can be told without them. `scripts/containers` runs what Docker can.
#![allow(
    clippy::unwrap_used,
    reason = "a test that can't read a file has failed"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use saphyr_parser::Parser;
use serde_json::Value;

/// The files below `deploy/` whose name ends so.
fn files(ending: &str) -> Vec<PathBuf> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
    let folders = fs::read_dir(top)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let files: Vec<_> = folders
        .filter(|path| path.is_dir())
        .flat_map(|folder| fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|found| found == ending))
        .collect();
    assert!(!files.is_empty(), "no .{ending} below deploy/");
    files
}

/// Cargo is not on the PATH, so a script that builds something fails.
#[test]
fn scripts_print_their_help_and_do_nothing_else() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = fs::read_dir(top.join("scripts")).unwrap();
    let scripts = found.map(|entry| entry.unwrap().path());
    for script in scripts.chain([top.join("deploy/compose/up.sh")]) {
        let text = fs::read_to_string(&script).unwrap_or_default();
        let mut lines = text.lines();
        if !lines.next().is_some_and(|first| first.ends_with("bash")) {
            continue;
        }
        let output = Command::new(&script)
            .arg("--help")
            .env("PATH", "/usr/bin:/bin")
            .output()
            .unwrap();
        assert!(output.status.success(), "{script:?}: {output:?}");
        let help = String::from_utf8(output.stdout).unwrap();
        let first = lines.next().unwrap().trim_start_matches("# ");
        assert!(help.starts_with(first), "{script:?}: {help}");
        assert!(!help.contains("set -euo"), "{script:?}: {help}");
    }
}

#[test]
fn every_yaml_file_to_deploy_is_yaml() {
    for file in files("yaml") {
        let text = fs::read_to_string(&file).unwrap();
        for event in Parser::new_from_str(&text) {
            if let Err(error) = event {
                panic!("{}: {error}", file.display());
            }
        }
    }
}

/// Saving by renaming puts a new file in place, which a file mounted by itself never shows.
#[test]
fn no_rule_file_is_mounted_by_itself() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = files("yaml");
    files.extend(
        [
            "README.md",
            "docs/sidecar.md",
            "deploy/compose/up.sh",
            "deploy/ecs/README.md",
        ]
        .map(|it| top.join(it)),
    );
    files.extend(
        [
            "src/cli/sidecar.rs",
            "src/cli/pause.rs",
            "scripts/containers",
        ]
        .map(|it| top.join(it)),
    );
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let mounted = text
            .lines()
            .find(|line| line.contains(".yaml:/") || line.contains("subPath"));
        assert_eq!(mounted, None, "{}", file.display());
    }
}

#[test]
fn the_task_definition_starts_the_workload_behind_a_healthy_sidecar() {
    for file in files("json") {
        let task: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        assert_eq!(task["networkMode"], "awsvpc");
        assert_eq!(task["requiresCompatibilities"], serde_json::json!(["EC2"]));
        let containers = task["containerDefinitions"].as_array().unwrap();
        let sidecar = &containers[0];
        let privileges = &sidecar["linuxParameters"];
        assert_eq!(privileges["devices"][0]["hostPath"], "/dev/net/tun");
        let capabilities = serde_json::json!({ "drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"] });
        assert_eq!(privileges["capabilities"], capabilities);
        assert_eq!(sidecar["healthCheck"]["command"][1], "/sgwall");
        for workload in &containers[1..] {
            let dependence = &workload["dependsOn"][0];
            assert_eq!(dependence["containerName"], sidecar["name"]);
            assert_eq!(dependence["condition"], "HEALTHY");
            let dropped = &workload["linuxParameters"]["capabilities"]["drop"];
            assert_eq!(dropped, &serde_json::json!(["NET_RAW"]));
        }
    }
}
