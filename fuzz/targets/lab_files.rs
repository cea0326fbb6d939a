//! `sgwall_fuzz::lab_files`, driven by libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sgwall_fuzz::lab_files(data));
