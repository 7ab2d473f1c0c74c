//! Real PTX: what NVRTC made of the kernels in `ptx/` (see `ptx/compile.py`).

use std::sync::Arc;

use kinglet_emulator::program::{AluOp, BarrierKind, Kernel, Op, Program, Space, Type};

const CALLS: &str = include_str!("ptx/calls.ptx");
const MEMORY: &str = include_str!("ptx/memory.ptx");
const NUMBERS: &str = include_str!("ptx/numbers.ptx");
const WARP: &str = include_str!("ptx/warp.ptx");

fn program(text: &str) -> Program {
    Program::parse(text).unwrap_or_else(|error| panic!("{error}"))
}

fn kernel(program: &Program, name: &str) -> Arc<Kernel> {
    program.kernels.iter().find(|kernel| kernel.name == name).unwrap_or_else(|| panic!("no {name}")).clone()
}

fn count(kernel: &Kernel, is: impl Fn(&Op) -> bool) -> usize {
    kernel.code.iter().filter(|instruction| is(&instruction.op)).count()
}

fn alu(op: &Op) -> Option<AluOp> {
    match op {
        Op::Alu { alu, .. } => Some(alu.op),
        _ => None,
    }
}

#[test]
fn every_instruction_has_a_line_of_the_text_and_of_the_source() {
    for (text, source) in [(CALLS, "calls.cu"), (MEMORY, "memory.cu"), (NUMBERS, "numbers.cu"), (WARP, "warp.cu")] {
        let lines: Vec<&str> = text.lines().collect();
        for kernel in program(text).kernels {
            assert_eq!(kernel.code.len(), kernel.lines.len());
            let mut from_source = 0;
            for (instruction, line) in kernel.code.iter().zip(&kernel.lines) {
                let written = lines[line.ptx as usize - 1];
                let first = written.trim_start().chars().next();
                assert!(first.is_some_and(|c| c != '.' && c != '/'), "{}: {written}", kernel.name);
                assert_eq!(instruction.guard.is_some(), written.contains('@'), "{written}");
                let Some((file, _)) = line.source else { continue };
                from_source += usize::from(kernel.files[file as usize].ends_with(source));
            }
            assert!(from_source * 2 > kernel.code.len(), "{}: {from_source}", kernel.name);
            assert_eq!(kernel.functions[0], (0, kernel.name.clone()));
            assert!(kernel.functions.windows(2).all(|pair| pair[0].0 < pair[1].0));
        }
    }
}

#[test]
fn calls_of_functions_that_are_not_inlined() {
    let program = program(CALLS);
    let pairs = kernel(&program, "pairs");
    assert_eq!(pairs.functions.len(), 3);
    for (start, _) in &pairs.functions[1..] {
        assert_eq!(pairs.code[*start as usize - 1].op, Op::Return);
    }
    let targets: Vec<u32> = (pairs.code.iter())
        .filter_map(|instruction| match &instruction.op {
            Op::Call { target, .. } => Some(*target),
            _ => None,
        })
        .collect();
    assert_eq!(targets.len(), 3);
    assert!(targets.iter().all(|target| pairs.functions[1..].iter().any(|(start, _)| start == target)));
    assert_eq!(count(&pairs, |op| matches!(op, Op::Printf { result: Some(_), .. })), 1);
    assert_eq!(count(&pairs, |op| matches!(op, Op::AssertFail { .. })), 1);
    // A struct of 16 bytes by value, behind two pointers.
    let bias = &pairs.params[2];
    assert_eq!((bias.offset, bias.bytes, bias.align, bias.ty), (16, 16, 8, Type::B8));
    assert!(program.variables.iter().any(|variable| variable.bytes == b"pair %d: %f %s\n\0"));
}

#[test]
fn a_table_of_labels() {
    let pick = kernel(&program(CALLS), "pick");
    let table = pick.code.iter().find_map(|instruction| match &instruction.op {
        Op::BranchIndexed { targets, .. } => Some(targets.clone()),
        _ => None,
    });
    let table = table.expect("the kernel has one");
    let operation = |pc: u32| alu(&pick.code[pc as usize].op);
    let expected = [Some(AluOp::Add), Some(AluOp::MulLo), Some(AluOp::Neg)];
    assert_eq!(table.iter().map(|pc| operation(*pc)).collect::<Vec<_>>(), expected);
}

#[test]
fn variables_with_values_and_addresses() {
    let program = program(MEMORY);
    let variable = |name: &str| {
        let index = program.variables.iter().position(|variable| variable.name == name);
        let index = index.unwrap_or_else(|| panic!("no {name}"));
        (index as u32, &program.variables[index])
    };
    let (numbers, values) = variable("numbers");
    assert_eq!(values.bytes, [7, 11, 13, 17].map(i32::to_le_bytes).concat());
    let table = [1.0f32, -2.5, 3.25, 0.0, 1e-20].map(f32::to_le_bytes).concat();
    assert_eq!((variable("table").1.space, &variable("table").1.bytes), (Space::Const, &table));
    assert_eq!(variable("pointers").1.relocations, [(0, numbers, 4, true), (8, numbers, 0, true)]);
    let words: Vec<&[u8]> = (variable("words").1.relocations.iter())
        .map(|(_, target, _, _)| program.variables[*target as usize].bytes.as_slice())
        .collect();
    assert_eq!(words, [b"one\0", b"two\0"]);
    let mixed = variable("mixed").1;
    assert_eq!((mixed.bytes[0], &mixed.bytes[8..16]), (9, &2.5f64.to_le_bytes()[..]));
    assert_eq!(mixed.relocations, [(16, numbers, 12, true)]);
    assert!(!variable("counter").1.initialised);
}

#[test]
fn shared_and_local_memory() {
    let program = program(MEMORY);
    let staged = kernel(&program, "staged");
    let sizes: Vec<u32> = staged.shared_variables.iter().map(|(_, _, bytes)| *bytes).collect();
    assert_eq!((sizes.len(), sizes.iter().sum::<u32>()), (2, 1024 + 33));
    assert!(staged.shared_bytes >= 1057 && staged.dynamic_shared_align >= 16);
    assert!(count(&staged, |op| matches!(op, Op::Load { dst, .. } if dst.len() == 4)) > 1);
    assert_eq!(count(&staged, |op| matches!(op, Op::Barrier { kind: BarrierKind::Sync, .. })), 1);
    let indexed = kernel(&program, "indexed");
    assert_eq!(indexed.frame_bytes, 64);
    assert!(count(&indexed, |op| matches!(op, Op::Store { space: Space::Local, .. })) > 4);
    let atomics = count(&kernel(&program, "counted"), |op| matches!(op, Op::Atomic { .. }));
    assert_eq!(atomics, 13);
    assert_eq!(count(&kernel(&program, "counted"), |op| *op == Op::Fence), 3);
}

#[test]
fn warps_and_tensor_cores() {
    let program = program(WARP);
    let exchange = kernel(&program, "exchange");
    assert_eq!(count(&exchange, |op| matches!(op, Op::Shuffle { .. })), 8);
    assert_eq!(count(&exchange, |op| matches!(op, Op::Vote { .. })), 3);
    assert_eq!(count(&exchange, |op| matches!(op, Op::Match { .. })), 2);
    assert_eq!(count(&exchange, |op| matches!(op, Op::Redux { .. })), 3);
    assert_eq!(count(&exchange, |op| matches!(op, Op::Barrier { .. })), 5);
    let multiply = kernel(&program, "multiply");
    let copies = count(&multiply, |op| matches!(op, Op::CopyAsync { .. }));
    assert_eq!(copies, 2 * count(&multiply, |op| *op == Op::CommitGroup));
    let products = count(&multiply, |op| matches!(op, Op::Mma { .. }));
    assert!(products > 0);
    assert_eq!(count(&multiply, |op| matches!(op, Op::LoadMatrix { .. })), 2 * products);
    let halves = kernel(&program, "halves");
    let has = |wanted: Type, op: AluOp| {
        count(&halves, |it| matches!(it, Op::Alu { alu, .. } if alu.op == op && alu.ty == wanted)) > 0
    };
    assert!(has(Type::F16, AluOp::Fma) && has(Type::Bf16x2, AluOp::Fma));
    assert!(has(Type::F32, AluOp::Cvt { to: Type::F16x2, integer_rounding: false }));
}

#[test]
fn numbers_of_every_width() {
    let program = program(NUMBERS);
    let integers = kernel(&program, "integers");
    let has = |op: AluOp| count(&integers, |it| alu(it) == Some(op)) > 0;
    assert!(has(AluOp::MulHi) && has(AluOp::Div) && has(AluOp::Sad) && has(AluOp::Popc) && has(AluOp::Clz));
    assert!(has(AluOp::ShfL { wrap: true }) && has(AluOp::Dp4a { a_signed: true, b_signed: true }));
    let reals = kernel(&program, "reals");
    let doubles = count(&reals, |it| matches!(it, Op::Alu { alu, .. } if alu.ty == Type::F64));
    assert!(doubles > 20, "{doubles}");
    // `--fmad=false`: every product and sum of the source is a rounding of its own.
    assert!(
        count(
            &reals,
            |it| matches!(it, Op::Alu { alu, .. } if alu.op == AluOp::Mul && !alu.modifiers.explicit_rounding)
        ) == 0
    );
}

/// A megabyte is read in well under a second; the limit leaves room for loaded machines and unoptimised builds.
#[test]
fn a_megabyte_is_read_soon() {
    let (_, kernels) = NUMBERS.split_once(".address_size 64").expect("a header");
    let mut text = String::from(".version 9.0\n.target sm_80\n.address_size 64\n");
    let mut copies = 0;
    while text.len() < 1 << 20 {
        text += &kernels.replace("integers", &format!("integers{copies}")).replace("reals", &format!("reals{copies}"));
        copies += 1;
    }
    let start = std::time::Instant::now();
    let program = program(&text);
    let took = start.elapsed();
    assert_eq!(program.kernels.len(), 2 * copies);
    assert!(took < std::time::Duration::from_secs(10), "{took:?}");
    println!("{} bytes in {took:?}", text.len());
}
