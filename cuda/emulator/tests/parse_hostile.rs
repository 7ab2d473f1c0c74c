//! Damaged and hostile text: an answer soon, and never a panic.

use std::time::{Duration, Instant};

use kinglet_emulator::error::Error;
use kinglet_emulator::program::Program;

const CORPUS: [&str; 4] = [
    include_str!("ptx/calls.ptx"),
    include_str!("ptx/memory.ptx"),
    include_str!("ptx/numbers.ptx"),
    include_str!("ptx/warp.ptx"),
];

const HEAD: &str = ".version 8.0\n.target sm_80\n.address_size 64\n";

/// A sequence that looks random and is the same each time (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

/// Whatever the answer is, an error is of the text and of a line that it has.
fn survives(text: &str) -> bool {
    match Program::parse(text) {
        Ok(_) => true,
        Err(Error::Parse { line, what }) => {
            let lines = text.bytes().filter(|&byte| byte == b'\n').count() as u32 + 1;
            assert!((1..=lines).contains(&line), "line {line} of {lines}: {what}");
            assert!(!what.is_empty());
            false
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn text_cut_at_every_byte() {
    for text in CORPUS {
        let end = text.trim_end().len();
        let body = text.find(".entry").unwrap();
        let step = if text.len() < 10_000 { 1 } else { 5 };
        let whole = (0..end).step_by(step).filter(|&cut| survives(&text[..cut])).count();
        // Only between two declarations is a part of the text a whole one.
        assert!(whole < end / step / 3, "{whole} of {end}");
        assert!(!survives(&text[..body + 20]));
    }
}

#[test]
fn bytes_changed_moved_and_repeated() {
    let mut random = Random(1);
    for round in 0..3000 {
        let text = CORPUS[round % CORPUS.len()];
        let mut bytes = text.as_bytes().to_vec();
        for _ in 0..=random.below(4) {
            let at = random.below(bytes.len());
            match random.below(4) {
                0 => bytes[at] = random.below(256) as u8,
                1 => {
                    let symbols = b"{}[]()<>.,;:+-*/%!@_|\"\n019 fdxU";
                    bytes[at] = symbols[random.below(symbols.len())];
                }
                2 => {
                    bytes.remove(at);
                }
                _ => {
                    let to = (at + random.below(40)).min(bytes.len());
                    let piece = bytes[at..to].to_vec();
                    let into = random.below(bytes.len());
                    bytes.splice(into..into, piece);
                }
            }
        }
        survives(&String::from_utf8_lossy(&bytes));
    }
}

#[test]
fn random_bytes_and_random_words() {
    let mut random = Random(2);
    let words: Vec<&str> = CORPUS.iter().flat_map(|text| text.split_inclusive(char::is_whitespace)).collect();
    for _ in 0..500 {
        let bytes: Vec<u8> = (0..random.below(400)).map(|_| random.below(256) as u8).collect();
        survives(&String::from_utf8_lossy(&bytes));
        let mut text = format!("{HEAD}.entry k() {{ ");
        for _ in 0..random.below(100) {
            text.push_str(words[random.below(words.len())]);
        }
        survives(&text);
    }
}

/// `count` times `part`, between `before` and `after`.
fn repeated(before: &str, part: &str, count: usize, after: &str) -> String {
    format!("{HEAD}{before}{}{after}", part.repeat(count))
}

/// Texts of about a megabyte that each strain something: the answer is known, and it comes soon.
#[test]
fn texts_that_ask_for_too_much() {
    let n = 200_000;
    let numbered = |count: usize, part: &dyn Fn(usize) -> String| (0..count).map(part).collect::<String>();
    let functions = numbered(8000, &|k| format!(".func f{k}() {{ call f{}; }}\n", k + 1));
    let texts: [(&str, String, bool); 21] = [
        ("blocks", repeated(".entry k() {", "{", n, ""), false),
        ("closed blocks", repeated(".entry k() {", "{ }", n, "}"), true),
        ("parentheses", repeated(".global .u64 x = ", "(", n, ";"), false),
        ("signs", repeated(".global .u64 x = ", "-", n, "1;"), false),
        ("choices", repeated(".global .u64 x = ", "1?2:", n, "3;"), false),
        ("lists", repeated(".global .u64 x[] = ", "{", n, ";"), false),
        ("vectors", repeated(".entry k() { mov.b32 ", "{", n, ";"), false),
        ("call lists", repeated(".entry k() { call ", "(", n, ";"), false),
        ("not", repeated(".entry k() { mov.b32 a, ", "!", n, ";"), false),
        ("modifiers", repeated(".entry k() { add", ".u32", n, " a, b, c;"), false),
        ("dimensions", repeated(".global .u8 x", "[1]", n, ";"), false),
        ("one long name", repeated(".entry ", "a", 5 * n, "() { }"), true),
        ("many files", repeated("", ".file 1 \"a\"\n", n / 4, ".entry k() { ret; }"), true),
        ("many values", repeated(".global .u8 x[] = {", "1,", n, "2};"), true),
        ("an open section", repeated(".section .debug {", "{", n, ""), false),
        ("many registers", format!("{HEAD}.entry k() {{ .reg .b32 %r<1048576>; mov.b32 %r1048575, 1; }}"), true),
        ("too many registers", format!("{HEAD}.entry k() {{ .reg .v4 .b32 %r<4000000000>; }}"), false),
        ("a huge variable", format!("{HEAD}.global .u64 x[4611686018427387904];"), false),
        ("a huge layout", format!("{HEAD}.global .align 65536 .u8 x[268435456]; .global .u8 y;"), false),
        ("a long chain of calls", format!("{HEAD}{functions}.func f8000() {{ }}\n.entry k() {{ call f0; }}"), true),
        (
            "a long circle of calls",
            format!("{HEAD}{functions}.func f8000() {{ call f0; }}\n.entry k() {{ call f0; }}"),
            false,
        ),
    ];
    for (name, text, expected) in texts {
        soon(name, &text, expected);
    }
}

/// What is small in the text and large in the program: copies of functions, sizes that multiply.
#[test]
fn texts_that_grow() {
    let body = "add.u32 r, r, 1;".repeat(5000);
    let kernels: String = (0..5000).map(|k| format!(".entry k{k}() {{ call f; }}\n")).collect();
    let copies = format!("{HEAD}.func f() {{ .reg .u32 r; {body} }}\n{kernels}");
    soon("copies of a function", &copies, false);
    let shared: String = (0..3000).map(|k| format!(".shared .u8 s{k}[4];\n.file {k} \"file\"\n")).collect();
    let kernels: String = (0..3000).map(|k| format!(".entry k{k}() {{ }}\n")).collect();
    soon("many of everything", &format!("{HEAD}{shared}{kernels}"), true);
    let scopes = format!(".entry k() {{ {} {} {} }}", "{".repeat(99), "bra out;".repeat(20_000), "}".repeat(99));
    soon("labels of outer blocks", &format!("{HEAD}{scopes}"), false);
    let frames: String = (0..20_000).map(|k| format!("{{ .local .u8 l{k}[1000]; }}")).collect();
    soon("many frames", &format!("{HEAD}.entry k() {{ {frames} }}"), false);
}

fn soon(name: &str, text: &str, expected: bool) {
    let start = Instant::now();
    assert_eq!(survives(text), expected, "{name}");
    // Loaded machines and unoptimised builds are slower; what this is to catch takes minutes.
    let took = start.elapsed();
    assert!(took < Duration::from_secs(20), "{name} took {took:?}");
}
