use serde_json::Value;

use super::*;
use crate::Config;

/// Transformers' own numbers: scripts/make-rope-fixture.
fn fixture() -> Vec<Value> {
    serde_json::from_str(include_str!("../../../tests/fixtures/rope.json")).unwrap()
}

fn bits(value: &Value) -> u32 {
    value.as_u64().unwrap() as u32
}

/// Distance in units of the last place, for positive numbers.
fn ulps(a: f32, bits: u32) -> u32 {
    a.to_bits().abs_diff(bits)
}

#[test]
fn frequencies_are_those_of_transformers() {
    let (mut exact, mut total) = (0, 0);
    for case in fixture() {
        let config = Config::from_json(case["config"].as_object().unwrap().clone()).unwrap();
        let length = case["length"].as_u64().unwrap() as usize;
        let ours = config.rope.frequencies(config.head_dim, length);
        let theirs = case["inv_freq"].as_array().unwrap();
        assert_eq!(ours.inv_freq.len(), theirs.len());
        for (i, (our, their)) in ours.inv_freq.iter().zip(theirs).enumerate() {
            let ulps = ulps(*our, bits(their));
            // PyTorch's vectorised power is not correctly rounded, ours is: the blends and the
            // second power of "dynamic" widen that by a little.
            assert!(ulps <= 2, "{}: frequency {i} is {our}, {ulps} ulp off", case["config"]);
            exact += usize::from(ulps == 0);
            total += 1;
        }
        assert!(ulps(ours.attention_factor, bits(&case["attention_factor"])) <= 1, "{}", case["config"]);
    }
    println!("{exact} of {total} frequencies are equal to the bit");
    assert!(total > 600 && exact * 100 > total * 99, "{exact} of {total}");
}

#[test]
fn divisors_divide() {
    let plain = Rope { theta: 10000.0, kind: RopeKind::Default }.frequencies(8, 1).inv_freq;
    let divided = Rope { theta: 10000.0, kind: RopeKind::Divisors(vec![1.0, 2.0, 4.0, 8.0]) }.frequencies(8, 1);
    let expected: Vec<f32> = plain.iter().zip([1.0, 2.0, 4.0, 8.0]).map(|(f, d)| f / d).collect();
    assert_eq!((divided.inv_freq, divided.attention_factor), (expected, 1.0));
}
