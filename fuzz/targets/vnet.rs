//! `sgwall_fuzz::vnet`, driven by libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sgwall_fuzz::vnet(data));
