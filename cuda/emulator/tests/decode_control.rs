//! Branches, labels, scopes, calls.

mod common;

use common::{FIRST_LINE, d, error, f, imm, op, ops, p, parse, r, refused, reg};
use kinglet_emulator::error::Error;
use kinglet_emulator::program::{Address, FrameCopy, Kernel, Op, Program, Space, Type};

/// A module around these functions and kernels.
fn module(body: &str) -> Result<Program, Error> {
    Program::parse(&format!(".version 8.0\n.target sm_80\n.address_size 64\n{body}"))
}

fn kernel(body: &str) -> std::sync::Arc<Kernel> {
    module(body).unwrap_or_else(|error| panic!("{error}")).kernels[0].clone()
}

fn failure(body: &str) -> (u32, String) {
    match module(body) {
        Err(Error::Parse { line, what }) => (line, what),
        other => panic!("an error is expected, not {other:?}"),
    }
}

fn code(kernel: &Kernel) -> Vec<Op> {
    kernel.code.iter().map(|instruction| instruction.op.clone()).collect()
}

fn at(offset: u64) -> Address {
    Address { base: imm(offset), offset: 0 }
}

#[test]
fn branches_forward_and_back() {
    let ops = ops("top: @p0 bra done; mov.u32 r0, 1; bra.uni top; done: exit;");
    assert_eq!(ops[0], Op::Branch { target: 3, uniform: false });
    assert_eq!(ops[2], Op::Branch { target: 0, uniform: true });
    assert_eq!(ops[3], Op::Exit);
    assert_eq!(op("ret;"), Op::Return);
    assert_eq!(op("trap;"), Op::Trap);
    assert_eq!(op("brkpt;"), Op::Trap);
}

#[test]
fn guards() {
    let code = &parse("@p1 mov.u32 r0, 1; @!p2 exit;").unwrap().kernels[0].code;
    assert_eq!(code[0].guard, Some((p(1), false)));
    assert_eq!(code[1].guard, Some((p(2), true)));
    assert_eq!(code[2].guard, None);
    assert!(error("@r0 exit;").contains("not a predicate"));
    assert!(error("@nothing exit;").contains("not declared"));
}

#[test]
fn a_label_at_the_end_has_an_instruction() {
    let kernel = kernel(".entry k() { .reg .pred %p<2>; @%p1 bra end; exit; end: }");
    assert_eq!(code(&kernel), [Op::Branch { target: 2, uniform: false }, Op::Exit, Op::Return]);
    let inner = self::kernel(".entry k() { .reg .pred %p<2>; { @%p1 bra end; exit; end: } }");
    assert_eq!(code(&inner), code(&kernel));
    assert_eq!(code(&self::kernel(".entry k() { }")), [Op::Return]);
}

#[test]
fn tables_of_labels() {
    let ops = ops("table: .branchtargets a, b, a; brx.idx.uni r1, table; a: exit; b: trap;");
    assert_eq!(ops[0], Op::BranchIndexed { index: reg(r(1)), targets: vec![1, 2, 1], uniform: true });
    refused(&[("brx.idx r1, table;", "not declared"), ("brx.idx r1;", "missing"), ("bra d1;", "indirect")]);
}

#[test]
fn labels_and_registers_belong_to_their_block() {
    let ops = ops("
        { .reg .b32 r0; .reg .b32 x<2>; again: mov.u32 r0, 1; mov.u32 x1, 2; bra again; }
        { .reg .b32 x<2>; again: mov.u32 x1, 3; bra again; }
        mov.u32 r0, 4; bra out; { bra out; } out: exit;");
    let destination = |op: &Op| match op {
        Op::Alu { dst, .. } => *dst,
        other => panic!("{other:?}"),
    };
    let inner = [destination(&ops[0]), destination(&ops[1]), destination(&ops[3])];
    assert_eq!(destination(&ops[5]), r(0));
    assert!(inner[0] != r(0) && inner[0] != inner[1] && inner[1] != inner[2]);
    assert_eq!(ops[2], Op::Branch { target: 0, uniform: false });
    assert_eq!(ops[4], Op::Branch { target: 3, uniform: false });
    assert_eq!(ops[7], Op::Branch { target: 8, uniform: false });
    for (body, wanted) in [
        ("{ inside: exit; } bra inside;", "inside is not in sight"),
        ("{ .reg .b32 y; } mov.u32 y, 1;", "y is not declared"),
        ("twice: exit; twice: exit;", "twice is there twice"),
        (".reg .b32 y; .reg .b64 y;", "y: y is declared twice"),
        (".reg .b32 y<2>; .reg .b64 y<3>;", "declared twice"),
        ("bra nowhere;", "nowhere is not in sight"),
    ] {
        assert!(error(body).contains(wanted), "{body}: {}", error(body));
    }
}

#[test]
fn only_registers_that_are_used_take_a_slot() {
    let program = parse("mov.u32 %r999, 1; mov.u32 %r7, %r999;").unwrap();
    // The 36 that the head declares one by one, and two.
    assert_eq!(program.kernels[0].registers, 38);
    assert!(error("mov.u32 %r01, 1;").contains("%r01 is not declared"));
    let vectors = kernel(
        ".entry k() { .reg .v4 .f32 v; .reg .v2 .b32 w<3>; .reg .b64 a;
        ld.global.v4.f32 v, [a]; mov.f32 v.y, v.w; st.global.v2.b32 [a], w1; mov.b32 w2.x, w1.y; }",
    );
    let ops = code(&vectors);
    assert!(matches!(&ops[0], Op::Load { dst, .. } if *dst == [Some(0), Some(1), Some(2), Some(3)]));
    assert!(matches!(&ops[1], Op::Alu { dst: 1, a, .. } if *a == reg(3)));
    assert!(matches!(&ops[2], Op::Store { src, .. } if *src == [reg(5), reg(6)]));
    assert!(matches!(&ops[3], Op::Alu { dst: 7, a, .. } if *a == reg(6)));
}

const CALLS: &str = "
.func (.param .b32 result) half(.param .b32 x, .param .align 8 .b8 pair[16])
{ .reg .b32 %r<4>; ld.param.b32 %r1, [x]; ld.param.b32 %r2, [pair+8]; add.u32 %r3, %r1, %r2; st.param.b32 [result], %r3; ret; }
.func (.param .b32 result) whole(.param .b32 x)
{ .reg .b32 %r<3>; ld.param.b32 %r1, [x];
  { .param .b32 a; .param .align 8 .b8 b[16]; .param .b32 c;
    st.param.b32 [a], %r1; st.param.b32 [b+8], 5;
    call.uni (c), half, (a, b); ld.param.b32 %r2, [c]; }
  st.param.b32 [result], %r2; ret; }
.entry first(.param .u64 out) { .reg .b32 %r<2>;
  { .param .b32 a; .param .b32 c; st.param.b32 [a], 1; call (c), whole, (a); call (c), whole, (a); ld.param.b32 %r1, [c]; }
  ret; }
.entry second() { .reg .pred p; ret; }";

#[test]
fn called_functions_are_copied_behind_the_kernel_once() {
    let program = module(CALLS).unwrap();
    let kernel = &program.kernels[0];
    let names: Vec<_> = kernel.functions.iter().map(|(start, name)| (*start, name.as_str())).collect();
    assert_eq!(names, [(0, "first"), (5, "whole"), (12, "half")]);
    let ops = code(kernel);
    // The kernel's frame: a, c; then the parameter and the result of `whole`.
    let call = Op::Call {
        target: 5,
        arguments: vec![FrameCopy { from: 0, to: 8, bytes: 4 }],
        results: vec![FrameCopy { from: 12, to: 4, bytes: 4 }],
    };
    assert_eq!((&ops[1], &ops[2]), (&call, &call));
    let Op::Call { target, arguments, .. } = &ops[8] else { panic!("{:?}", ops[8]) };
    assert_eq!(*target, 12);
    assert_eq!((arguments[0].bytes, arguments[1].bytes), (4, 16));
    assert_eq!(arguments[1].to % 8, 0);
    // Its own registers: none of the three functions shares one.
    assert_eq!(kernel.registers, 1 + 2 + 3);
    assert_eq!(
        ops[12],
        Op::Load {
            space: Space::Local,
            ty: Type::B32,
            reg_bytes: 4,
            dst: vec![Some(3)],
            address: at(u64::from(arguments[0].to)),
            strong: false,
        }
    );
    assert_eq!(program.kernels[1].functions.len(), 1);
    assert_eq!(program.kernels[1].frame_bytes, 0);
}

#[test]
fn arguments_in_registers_go_through_the_frame() {
    let kernel = kernel(
        "
.func (.reg .b32 sum) add(.reg .b32 x, .reg .b32 y) { add.u32 sum, x, y; ret; }
.entry k() { .reg .b32 a, b; call (b), add, (a, 3); ret; }",
    );
    let ops = code(&kernel);
    let store = |value, offset| Op::Store {
        space: Space::Local,
        ty: Type::B32,
        src: vec![value],
        address: at(offset),
        strong: false,
    };
    let load = |dst, offset| Op::Load {
        space: Space::Local,
        ty: Type::B32,
        reg_bytes: 4,
        dst: vec![Some(dst)],
        address: at(offset),
        strong: false,
    };
    let Op::Call { target, arguments, results } = &ops[2] else { panic!("{:?}", ops[2]) };
    assert_eq!((&ops[0], &ops[1]), (&store(reg(0), 0), &store(imm(3), 4)));
    assert_eq!((*target, arguments.len()), (5, 2));
    assert_eq!(ops[3], load(1, u64::from(results[0].to)));
    assert_eq!((&ops[5], &ops[6]), (&load(3, u64::from(arguments[0].to)), &load(4, u64::from(arguments[1].to))));
    assert_eq!((&ops[8], &ops[9]), (&store(reg(2), u64::from(results[0].from)), &Op::Return));
}

#[test]
fn printf_and_assertions() {
    let kernel = kernel(
        "
.extern .func (.param .b32 r) vprintf(.param .b64 f, .param .b64 a);
.extern .func __assertfail(.param .b64 m, .param .b64 f, .param .b32 l, .param .b64 n, .param .b64 s);
.entry k() {
  { .param .b64 f; .param .b64 a; .param .b32 r; call (r), vprintf, (f, a); }
  { .param .b64 m; .param .b64 f; .param .b32 l; .param .b64 n; .param .b64 s; call __assertfail, (m, f, l, n, s); }
}",
    );
    let ops = code(&kernel);
    assert_eq!(ops[0], Op::Printf { format: 0, arguments: 8, result: Some(16) });
    assert_eq!(ops[1], Op::AssertFail { message: 24, file: 32, line: 40, function: 48 });
}

#[test]
fn calls_that_cannot_be() {
    let table = [
        (
            ".func a();\n.func b() { call a; }\n.func a() { call b; }\n.entry k() { call a; }",
            5,
            "recursion (a -> b -> a)",
        ),
        (".func a() { call a; }\n.entry k() { call a; }", 4, "recursion (a -> a)"),
        (".extern .func malloc();\n.entry k() { call malloc; }", 5, "malloc has no body"),
        (".entry k() { call nothing; }", 4, "nothing is not declared"),
        (".entry k() { call k; }", 4, "k is a kernel"),
        (".entry k() { .reg .b64 a; call a; }", 4, "indirect call"),
        (".func a(.param .b32 x) { }\n.entry k() { call a; }", 5, "takes 1 arguments"),
        (".func a(.param .b32 x) { }\n.entry k() { .param .b64 y; call a, (y); }", 5, "y has 8 bytes, x has 4"),
        (".func a(.param .b32 x[4]) { }\n.entry k() { .reg .b32 y; call a, (y); }", 5, "needs a .param variable"),
        (".entry k() {\nprototype: .callprototype _ (.param .b32 x);\n}", 5, "indirect calls"),
        (".func a() { }\n.entry k() { .reg .b64 x; mov.u64 x, a; }", 5, "address of the function a"),
    ];
    for (body, line, wanted) in table {
        let (at, what) = failure(body);
        assert!(what.contains(wanted), "{body}: {what}");
        assert_eq!(at, line, "{body}: {what}");
    }
}

#[test]
fn functions_that_nobody_calls_may_be_what_they_like() {
    let kernel = kernel(".func a() { call a; }\n.extern .func b();\n.entry k() { ret; }");
    assert_eq!(kernel.functions.len(), 1);
}

#[test]
fn lines_of_the_text_and_of_the_source() {
    let program = module(
        "
.file 1 \"one.cu\"
.file 7 \"two.cuh\"
.func helper() {
.loc 7 30 1
ret;
}
.entry k() {
.reg .b32 r;
mov.u32 r, 1;
.loc 1 12 5
mov.u32 r, 2;
.loc 7 3 1, function_name $L__info_string0, inlined_at 1 13 2
mov.u32 r, 3;
.loc 7 4 1, function_name $L__info_string0+4, inlined_at 1 13 2
call helper;
}
.section .debug_str { $L__info_string0: .b8 95, 0 }",
    )
    .unwrap();
    let kernel = &program.kernels[0];
    assert_eq!(*kernel.files, ["one.cu".to_owned(), "two.cuh".to_owned()]);
    let lines: Vec<_> = kernel.lines.iter().map(|line| (line.ptx, line.source)).collect();
    let expected = [
        (13, None),
        (15, Some((0, 12))),
        (17, Some((1, 3))),
        (19, Some((1, 4))),
        (20, Some((1, 4))),
        (9, Some((1, 30))),
    ];
    assert_eq!(lines, expected);
    let callers: Vec<_> = kernel.lines.iter().map(|line| line.caller).collect();
    assert_eq!(callers, [None, None, Some((0, 13)), Some((0, 13)), Some((0, 13)), None]);
    assert_eq!(kernel.functions, [(0, "k".to_owned()), (5, "helper".to_owned())]);
    assert_eq!(failure(".entry k() {\n.loc 3 1 1\n}").0, 5);
    assert_eq!(failure(".file 1 \"one.cu\"\n.entry k() {\n.loc 1 1 1, inlined_at 3 1 1\n}").0, 6);
    assert_eq!(FIRST_LINE, 18);
    let _ = (d(0), f(0));
}
