//! `sgwall_fuzz::ethernet`, driven by libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sgwall_fuzz::ethernet(data));
