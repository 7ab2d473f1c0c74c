//! Headers, variables and their values, parameters, shared memory, limits.

use kinglet_emulator::error::Error;
use kinglet_emulator::program::{Op, Param, Program, Space, Src, Type};

fn module(body: &str) -> Program {
    let text = format!(".version 8.0\n.target sm_80\n.address_size 64\n{body}");
    Program::parse(&text).unwrap_or_else(|error| panic!("{body}: {error}"))
}

fn failure(text: &str) -> (u32, String) {
    match Program::parse(text) {
        Err(Error::Parse { line, what }) => (line, what),
        other => panic!("{text}: an error is expected, not {other:?}"),
    }
}

/// The error on the first line behind the header.
fn refused(table: &[(&str, &str)]) {
    for (body, wanted) in table {
        let (line, what) = failure(&format!(".version 8.0\n.target sm_80\n.address_size 64\n{body}"));
        assert!(what.contains(wanted), "{body}: {what}");
        assert_eq!(line, 4, "{body}: {what}");
    }
}

#[test]
fn headers() {
    let program = Program::parse(".version 8.5\n.target sm_90a, debug\n.address_size 64\n").unwrap();
    assert_eq!((program.version, program.target, program.arch_specific), (85, 90, true));
    let program =
        Program::parse("// comment\n.version 7.0 /* and\none more */ .target sm_80 .address_size 64\0").unwrap();
    assert_eq!((program.version, program.target, program.arch_specific), (70, 80, false));
    for (text, line, wanted) in [
        ("", 1, ".version is expected"),
        (".target sm_80", 1, ".version is expected"),
        (".version 8", 1, "no version"),
        (".version 8.0\n.address_size 64", 2, ".target is expected"),
        (".version 8.0\n.target compute_80", 2, "no target"),
        (".version 8.0\n.target sm_80\n.address_size 32", 3, "address_size 32"),
        (".version 8.0\n.target sm_80, texmode_unified", 2, "texmode_unified"),
    ] {
        let (at, what) = failure(text);
        assert!(what.contains(wanted), "{text}: {what}");
        assert_eq!(at, line, "{text}");
    }
}

/// Each declaration alone, and the bytes that it has.
#[test]
fn values_of_variables() {
    let floats: Vec<u8> = [1.0f32, -2.5, 0.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let table: [(&str, u64, Vec<u8>); 16] = [
        (".global .u32 x;", 4, vec![0; 4]),
        (".global .align 16 .b8 x[5];", 16, vec![0; 5]),
        (".global .u8 x = 255;", 1, vec![255]),
        (".global .u8 x = -1;", 1, vec![255]),
        (".global .s16 x[3] = {1, -2};", 2, vec![1, 0, 0xfe, 0xff, 0, 0]),
        (".global .b8 x[] = {104, 105, 0};", 1, vec![104, 105, 0]),
        (".const .f32 x[3] = {0f3F800000, -2.5};", 4, floats),
        (".const .f64 x = 0d4000000000000000;", 8, 2.0f64.to_le_bytes().to_vec()),
        (".global .f64 x = 0f40000000;", 8, 2.0f64.to_le_bytes().to_vec()),
        (".global .b32 x = 0f40000000;", 4, 2.0f32.to_le_bytes().to_vec()),
        (".global .u8 x[2][3] = {{1, 2, 3}, {4}};", 1, vec![1, 2, 3, 4, 0, 0]),
        (".global .u8 x[][2] = {{1, 2}, {3, 4}, {5, 6}};", 1, vec![1, 2, 3, 4, 5, 6]),
        (".global .v2 .u16 x = {1, 2};", 4, vec![1, 0, 2, 0]),
        (".global .v2 .u16 x[2] = {{1, 2}, {3, 4}};", 4, vec![1, 0, 2, 0, 3, 0, 4, 0]),
        (".global .u32 x = (3 + 4) * 2 - (1 << 3);", 4, vec![6, 0, 0, 0]),
        (
            ".visible .global .attribute(.managed) .u64 x = 0x123456789abcdef0;",
            8,
            0x1234_5678_9abc_def0u64.to_le_bytes().to_vec(),
        ),
    ];
    for (text, align, bytes) in table {
        let program = module(text);
        let variable = &program.variables[0];
        assert_eq!((variable.align, &variable.bytes), (align, &bytes), "{text}");
        assert_eq!(variable.initialised, text.contains('='), "{text}");
        let space = if text.contains(".const") { Space::Const } else { Space::Global };
        assert_eq!((variable.name.as_str(), variable.space), ("x", space), "{text}");
    }
}

#[test]
fn variables_that_hold_addresses() {
    let program = module(
        "
.global .u32 a[4] = {1, 2, 3, 4};
.global .u64 p[4] = {a, generic(a)+8, 0, generic(t) - 4};
.const .u64 t = later;
.global .u8 later;",
    );
    assert_eq!(program.variables[1].relocations, [(0, 0, 0, false), (8, 0, 8, true), (24, 2, -4, true)]);
    assert_eq!(program.variables[2].relocations, [(0, 3, 0, false)]);
    assert_eq!(program.variables[1].bytes, [0; 32]);
}

#[test]
fn variables_of_functions() {
    let program = module(
        "
.global .u32 a;
.entry k() { .global .u32 a[2] = {7, 8}; .reg .u64 d; mov.u64 d, a; }
.entry m() { .reg .u64 d; mov.u64 d, a; }",
    );
    assert_eq!(program.variables[1].name, "k.a");
    let source = |kernel: usize| match program.kernels[kernel].code[0].op {
        Op::Alu { a, .. } => a,
        _ => panic!("no move"),
    };
    assert_eq!((source(0), source(1)), (Src::Variable(1, 0), Src::Variable(0, 0)));
}

#[test]
fn what_no_variable_can_be() {
    refused(&[
        (".global .u32 x[2] = {1, 2, 3};", "3 values for 2"),
        (".global .u32 x = {1};", "a list for one value"),
        (".global .u32 x[2] = 1;", "one value for an array"),
        (".global .u32 x = 1.5;", "F64(1.5)"),
        (".global .f32 x = 1;", "Int"),
        (".global .u32 x = y;", "64 bits"),
        (".global .u64 x = y;", "y is not declared"),
        (".global .u8 x[4] = {0xff(y)};", "mask"),
        (".global .pred x;", "memory"),
        (".global .u32 x[];", "size of an array"),
        (".global .u32 x[2][];", "size of an array"),
        (".global .u32 x<4>;", "registers"),
        (".global .u32 x; .global .u32 x;", "twice"),
        (".global .u8 x[268435457];", "bytes"),
        (".global .u8 x[4294967296][4294967296];", "bytes"),
        (".global .u8 x[200000000]; .global .u8 y[200000000];", "exceed"),
        (".global .u8 x[-1];", "dimension"),
        (".global .align 3 .u8 x;", "alignment"),
        (".const .u8 x[65537];", "65536"),
        (".extern .global .u32 x;", "not defined"),
        (".shared .u32 x = 1;", "no value"),
        (".local .u32 x;", "outside"),
        (".reg .u32 x;", "outside"),
        (".global .texref x;", "not supported: .texref"),
        (".alias a, b;", "not supported: .alias"),
        (".global .u64 x = f; .func f() { }", "function f"),
        (".global .u64 x = s; .shared .u32 s;", "no address"),
        ("nonsense", "directive"),
        (".entry k(.shared .u32 x) { }", ".param is expected"),
        (".entry k(.reg .u32 x) { }", "no .param"),
        (".entry k() { .shared .u32 x = 1; }", "no value"),
        (".entry k() { .local .u8 x[600000]; }", "local memory"),
        (".entry k(.param .b8 x[40000]) { }", "parameters"),
        (".entry k() { } .entry k() { }", "twice"),
        (".entry k() { .reg .b32 %r<4000000000>; }", "registers"),
        (".entry k() { .reg .b32 %r<99999999999999999999>; }", "registers"),
        (".entry k() { .reg .b128 q; }", "128"),
        (".entry k() { .shared .u8 x[50000]; .reg .u32 r; mov.u32 r, x; }", "shared memory"),
        (".entry k() .bogus { }", "not supported: .bogus"),
        (".entry k() { .bogus 1; }", "not supported: .bogus"),
    ]);
}

#[test]
fn an_extern_may_be_defined_here() {
    let program = module(".extern .global .u32 x;\n.visible .global .u32 x = 5;");
    assert_eq!(program.variables[0].bytes, [5, 0, 0, 0]);
}

#[test]
fn parameters_of_kernels() {
    let program = module(
        "
.visible .entry k(
    .param .u8 flag,
    .param .u64 .ptr .global .align 16 data,
    .param .align 16 .b8 pair[20],
    .param .f32 scale
) .maxntid 256, 1, 1 .minnctapersm 2 .maxnreg 64 .pragma \"nounroll\"; { ret; }
.entry exact() .reqntid 8, 4 .reqnctapercluster 2 .explicitcluster { ret; }",
    );
    let param = |name: &str, offset, bytes, align, ty| Param { name: name.into(), offset, bytes, align, ty };
    let kernel = &program.kernels[0];
    let expected = [
        param("flag", 0, 1, 1, Type::U8),
        param("data", 8, 8, 8, Type::U64),
        param("pair", 16, 20, 16, Type::B8),
        param("scale", 36, 4, 4, Type::F32),
    ];
    assert_eq!(kernel.params, expected);
    assert_eq!((kernel.param_bytes, kernel.max_threads), (40, Some([256, 1, 1])));
    let exact = &program.kernels[1];
    assert_eq!((exact.required_threads, exact.required_cluster), (Some([8, 4, 1]), Some([2, 1, 1])));
}

#[test]
fn shared_memory_is_what_the_kernel_and_its_callees_name() {
    let program = module(
        "
.shared .align 4 .b8 a[6];
.shared .align 16 .b8 b[16];
.shared .align 4 .b8 unused[4096];
.extern .shared .align 64 .b8 dynamic[];
.func helper() { .shared .u64 own; .reg .b32 r; ld.shared.u32 r, [b]; ld.shared.u32 r, [own]; ret; }
.entry k() { .reg .b32 r; ld.shared.u32 r, [a+4]; ld.shared.u32 r, [dynamic]; call helper; ret; }
.entry m() { .reg .b32 r; ld.shared.u32 r, [b]; ret; }
.entry none() { ret; }",
    );
    let shared = |index: usize| {
        let kernel = &program.kernels[index];
        (kernel.shared_bytes, kernel.dynamic_shared_align, kernel.shared_variables.clone())
    };
    let variable = |name: &str, offset, bytes| (name.to_owned(), offset, bytes);
    let all = vec![variable("a", 0, 6), variable("b", 16, 16), variable("own", 32, 8)];
    assert_eq!(shared(0), (40, 64, all));
    assert_eq!(shared(1), (16, 16, vec![variable("b", 0, 16)]));
    assert_eq!(shared(2), (0, 16, vec![]));
}

#[test]
fn a_frame_holds_locals_of_all_functions_apart() {
    let program = module("
.func helper() { .local .align 8 .b8 depot[12]; .reg .u64 d; mov.u64 d, depot; ret; }
.entry k() { .local .align 16 .b8 depot[20]; .local .u8 x; .reg .u64 d; mov.u64 d, depot; mov.u64 d, x; call helper; ret; }");
    let kernel = &program.kernels[0];
    let source = |index: usize| match kernel.code[index].op {
        Op::Alu { a: Src::Imm(offset), .. } => offset,
        _ => panic!("no move of an address"),
    };
    assert_eq!((source(0), source(1), source(4)), (0, 20, 24));
    assert_eq!(kernel.frame_bytes, 36);
}
