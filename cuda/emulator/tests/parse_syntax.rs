//! The text's own level: tokens, numbers, expressions, operands, comments; every error has its line.

use kinglet_emulator::error::Error;
use kinglet_emulator::syntax::{Address, Init, Number, Operand, Statement, parse};

const HEAD: &str = ".version 8.0\n.target sm_80\n.address_size 64\n";

/// The operands of the one instruction of a kernel.
fn with_operands(instruction: &str, check: impl Fn(&[Operand<'_>])) {
    let text = format!("{HEAD}.entry k() {{ {instruction} }}");
    let module = parse(&text).unwrap_or_else(|error| panic!("{instruction}: {error}"));
    match module.functions[0].body.as_deref() {
        Some([Statement::Instruction(instruction)]) => check(&instruction.operands),
        other => panic!("{other:?}"),
    }
}

fn number(text: &str) -> Number {
    let text = format!("{HEAD}.global .u64 x = {text};");
    match parse(&text).unwrap_or_else(|error| panic!("{text}: {error}")).variables[0].init {
        Some(Init::Number(number)) => number,
        ref other => panic!("{other:?}"),
    }
}

fn failure(body: &str) -> (u32, String) {
    match parse(&format!("{HEAD}{body}")) {
        Err(Error::Parse { line, what }) => (line, what),
        other => panic!("{body}: an error is expected, not {other:?}"),
    }
}

#[test]
fn literals() {
    let int = |bits: u64, unsigned| Number::Int { bits, unsigned };
    let table = [
        ("0", int(0, false)),
        ("1234", int(1234, false)),
        ("12U", int(12, true)),
        ("0x1F", int(31, false)),
        ("0XffU", int(255, true)),
        ("017", int(15, false)),
        ("0b101", int(5, false)),
        ("9223372036854775808", int(1 << 63, true)),
        ("18446744073709551615", int(u64::MAX, true)),
        ("0f3F800000", Number::F32(0x3f80_0000)),
        ("0F7fc00000", Number::F32(0x7fc0_0000)),
        ("0d3FF0000000000000", Number::F64(1.0)),
        ("1.5", Number::F64(1.5)),
        ("2.", Number::F64(2.0)),
        ("1e3", Number::F64(1000.0)),
        ("1.5e-3", Number::F64(0.0015)),
        ("-0f3F800000", Number::F32(0xbf80_0000)),
        ("WARP_SZ", int(32, true)),
    ];
    for (text, expected) in table {
        assert_eq!(number(text), expected, "{text}");
    }
    for text in ["0x", "0b2", "08", "1__2", "0f3F8", "12abc", "1.2.3", "18446744073709551616", "0d1", "1e", "0x1.5"] {
        assert!(parse(&format!("{HEAD}.global .u64 x = {text};")).is_err(), "{text}");
    }
}

#[test]
fn constant_expressions() {
    let table: [(&str, i64); 24] = [
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("-4 + 2", -2),
        ("10 - 2 - 3", 5),
        ("7 / 2", 3),
        ("-7 / 2", -3),
        ("-7 % 4", -3),
        ("1 << 4 + 1", 32),
        ("-8 >> 1", -4),
        ("(.u64)-8 >> 63", 1),
        ("6 & 3 | 8 ^ 1", 11),
        ("~0", -1),
        ("!5", 0),
        ("!0", 1),
        ("3 < 4", 1),
        ("-1 < 0", 1),
        ("-1 < 0U", 0),
        ("4 >= 5", 0),
        ("3 == 3 && 2 != 2 || 1", 1),
        ("0 ? 5 : 2 > 1 ? 6 : 7", 6),
        ("9223372036854775807 + 1", i64::MIN),
        ("(-9223372036854775807 - 1) / -1", i64::MIN),
        ("1 << 70", 0),
        ("1.0 < 2.0", 1),
    ];
    for (text, expected) in table {
        let Number::Int { bits, .. } = number(text) else { panic!("{text}") };
        assert_eq!(bits as i64, expected, "{text}");
    }
    assert_eq!(number("1.5 * 2.0 + -1.0"), Number::F64(2.0));
    for text in ["1 / 0", "5 % 0", "1.0 & 2.0", "~1.0", "1.0 + 1", "(1", "1 +", "(.u64)1.0", "1.0 ? 1 : 2", "* 3"] {
        let (line, _) = failure(&format!(".global .u64 x = {text};"));
        assert_eq!(line, 4, "{text}");
    }
}

#[test]
fn operands() {
    with_operands("op %r1, _, !%p1, name+4, name-4, p|q, 7, -1.5;", |operands| {
        let expected = [
            Operand::Name("%r1"),
            Operand::Name("_"),
            Operand::Not("%p1"),
            Operand::Sum("name", 4),
            Operand::Sum("name", -4),
            Operand::Pair("p", "q"),
            Operand::Number(Number::Int { bits: 7, unsigned: false }),
            Operand::Number(Number::F64(-1.5)),
        ];
        assert_eq!(operands, expected);
    });
    with_operands("op {%f1, _, 3}, (), (a, 4, b), (5), !1;", |operands| {
        let three = Operand::Number(Number::Int { bits: 3, unsigned: false });
        assert_eq!(operands[0], Operand::Vector(vec![Operand::Name("%f1"), Operand::Name("_"), three]));
        assert_eq!(operands[1], Operand::List(vec![]));
        assert!(matches!(&operands[2], Operand::List(list) if list.len() == 3));
        assert_eq!(operands[3], Operand::Number(Number::Int { bits: 5, unsigned: false }));
        assert_eq!(operands[4], Operand::Number(Number::Int { bits: 0, unsigned: false }));
    });
    let plain = |base, offset| Operand::Address(Address { base, offset, coordinates: None, unified: false });
    with_operands("op [%rd1], [%rd1+8], [%rd1+-8], [%rd1 - 8], [16], [sym+4*2], [x].unified;", |operands| {
        assert_eq!(operands[0], plain(Some("%rd1"), 0));
        assert_eq!(operands[1], plain(Some("%rd1"), 8));
        assert_eq!(operands[2], plain(Some("%rd1"), -8));
        assert_eq!(operands[3], plain(Some("%rd1"), -8));
        assert_eq!(operands[4], plain(None, 16));
        assert_eq!(operands[5], plain(Some("sym"), 8));
        assert!(matches!(&operands[6], Operand::Address(address) if address.unified));
    });
    with_operands("op [%rd1, {%r1, %r2}];", |operands| {
        assert!(matches!(&operands[0], Operand::Address(address) if address.coordinates.as_ref().unwrap().len() == 2));
    });
}

#[test]
fn names_and_blanks() {
    let text = format!(
        "{HEAD}.visible.entry _Z3foo$bar ( ) // comment\n{{ /* two\nlines */ @ ! %p1 ld .global .L1::no_allocate .u32 a , [ b ] ; $L__BB0_1 : bra $L__BB0_1; }}"
    );
    let module = parse(&text).unwrap();
    let function = &module.functions[0];
    assert_eq!((function.name, function.line, function.end), ("_Z3foo$bar", 4, 6));
    let body = function.body.as_deref().unwrap();
    let Statement::Instruction(load) = &body[0] else { panic!("{:?}", body[0]) };
    assert_eq!(
        (load.opcode.as_ref(), load.guard, load.line),
        ("ld.global.L1::no_allocate.u32", Some(("%p1", true)), 6)
    );
    assert_eq!(body[1], Statement::Label { line: 6, name: "$L__BB0_1" });
}

#[test]
fn what_is_no_part_of_the_program_is_skipped() {
    let text = format!(
        "{HEAD}.file 1 \"a \\\" b.cu\", 12, 34\n.pragma \"nounroll\";\n.section .debug_info {{ .b8 1, 2 .b32 $L - 4 {{ }} }}\n;\n.entry k() {{ .pragma \"used_bytes_mask 0x0fff\"; .loc 1 2 3; ; ret; }}"
    );
    // `.loc` needs no semicolon, and one alone is nothing.
    let module = parse(&text).unwrap();
    assert_eq!(module.files, [(1, "a \\\" b.cu")]);
    assert_eq!(module.functions[0].body.as_ref().unwrap().len(), 2);
}

#[test]
fn errors_have_the_line_where_they_begin() {
    let table = [
        (".entry k() {\n add.u32 a, b\n}", 6, "; is expected, not }"),
        (".entry k() {\n\n add.u32 a,, b;\n}", 6, "a constant is expected, not ,"),
        (".entry k() {\n", 5, "the text ends within k"),
        (".entry k() {\n/* no end", 5, "a comment that does not end"),
        (".file 1 \"no end", 4, "a string that does not end"),
        (".section .debug_str {\n\n", 4, "does not end"),
        (".entry k() {\n}}", 5, "a directive is expected"),
        (".entry k() {\n ld.u32 a, [b+];\n}", 5, "a constant is expected, not ]"),
        (".entry k() {\n ld.u32 a, [b+c];\n}", 5, "a constant is expected, not c"),
        (".entry k() {\n mov.u32 {{a, b}, c}, d;\n}", 5, "a register or a constant"),
        (".entry k() {\n mov.u32 a, \u{e9};\n}", 5, "unexpected character"),
        (".entry k() {\n mov.u32 a, \"text\";\n}", 5, "a constant is expected"),
        (".entry k() {\n 5;\n}", 5, "a name is expected, not 5"),
        (".entry k() {\n .loc 1 2;\n}", 5, "the column of a .loc"),
        (".entry k() {\n .reg .b32 ;\n}", 5, "a name is expected"),
        (".entry k() {\n .reg %r1;\n}", 5, "a type is expected"),
        ("#include \"x\"", 4, "a directive is expected"),
        (".entry k(.param .u32 a .param .u32 b) { }", 4, ") is expected"),
    ];
    for (body, line, wanted) in table {
        let (at, what) = failure(body);
        assert!(what.contains(wanted), "{body}: {what}");
        assert_eq!(at, line, "{body}: {what}");
    }
}
