#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| pgark_fuzz::reconstruction(data));
