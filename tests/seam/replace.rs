//! Other kernels in the place of built-in ones.

use super::contains;
use kinglet_cuda::{CompilerOptions, Device as Cuda, KernelSource};
use kinglet_oracle::{Checker, cases, simd};
use kinglet_tensor::{DType, Device, EmulatorOptions, Tensor, ops};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

fn device() -> Device {
    Device::emulated(EmulatorOptions::default()).unwrap()
}

fn built_in(module: &str) -> String {
    kinglet_cuda::ptx::ptx(module).unwrap()
}

fn replace(device: &Device, module: &str, source: KernelSource<'_>) -> kinglet_cuda::Result<Vec<String>> {
    device.as_cuda().unwrap().replace(module, "mine.cu", source, &compiler())
}

fn ones(device: &Device) -> Vec<f32> {
    Tensor::full(1.0, &[3], DType::F32, device).unwrap().to_vec::<f32>().unwrap()
}

/// The PTX of `module` with everything but the kernel `entry` taken out.
fn only(module: &str, entry: &str) -> String {
    let text = built_in(module);
    let start = text.find(".visible .entry").unwrap();
    let kernels = text[start..].split(".visible .entry").skip(1);
    let body = kernels.into_iter().find(|body| body.trim_start().starts_with(&format!("{entry}("))).unwrap();
    let body = body.split("\n}\n").next().unwrap();
    // Without the file table that follows the kernels, line information means nothing.
    let body: Vec<&str> = body.lines().filter(|line| !line.trim_start().starts_with(".loc")).collect();
    format!("{}.visible .entry {}\n}}\n", &text[..start], body.join("\n"))
}

#[test]
fn ptx_takes_the_place_of_a_kernel_on_one_device_until_it_is_restored() {
    let (changed, plain) = (device(), device());
    let doubled = only("copy", "fill_f32").replacen("cvta.to.global", "add.f32 %f1, %f1, %f1;\n\tcvta.to.global", 1);
    // The value lies in the first float register once it is loaded.
    assert!(doubled.contains("%f1, [fill_f32_param_0]"), "{doubled}");
    assert_eq!(ones(&changed), [1.0; 3]);
    assert_eq!(replace(&changed, "copy", KernelSource::Ptx(&doubled)).unwrap(), ["fill_f32"]);
    assert_eq!((ones(&changed), ones(&plain)), (vec![2.0; 3], vec![1.0; 3]));
    // The others are as they were.
    let x = Tensor::from_vec(vec![1.0f32, -2.5], &[2], &changed).unwrap();
    assert_eq!(x.to_dtype(DType::I32).unwrap().to_vec::<i32>().unwrap(), [1, -2]);
    changed.as_cuda().unwrap().restore("copy").unwrap();
    assert_eq!(ones(&changed), [1.0; 3]);
}

#[test]
fn what_a_kernel_printed_is_there_even_if_it_then_fails() {
    let before = |place: &str, text: &str, ptx: &str| ptx.replacen(place, &format!("{text}\n{place}"), 1);
    let ptx = only("copy", "fill_f32");
    let ptx = before(
        ".visible .entry",
        ".global .align 1 .b8 said[4] = {104, 105, 10, 0};
         .extern .func (.param .b32 r) vprintf (.param .b64 f, .param .b64 v);",
        &ptx,
    );
    let ptx = before(
        "cvta.to.global",
        "{ .reg .b64 text; .param .b64 f; .param .b64 v; .param .b32 r; mov.u64 text, said; cvta.global.u64 text, text;
         st.param.b64 [f], text; st.param.b64 [v], 0; call.uni (r), vprintf, (f, v); }
         trap;",
        &ptx,
    );
    let device = device();
    replace(&device, "copy", KernelSource::Ptx(&ptx)).unwrap();
    let cuda = device.as_cuda().unwrap();
    let filled = Tensor::full(1.0, &[3], DType::F32, &device).and_then(|x| x.to_vec::<f32>());
    contains(&filled.unwrap_err(), &["trap", "fill_f32"]);
    let printed = cuda.take_printed();
    assert!(printed.starts_with("hi\n"), "{printed:?}");
    assert_eq!(cuda.take_printed(), "");
}

#[test]
fn a_wrong_answer_is_found_by_the_oracle() {
    let device = device();
    let wrong = only("scale", "scale_f32").replacen("mul.rn.f32", "add.rn.f32", 1);
    replace(&device, "scale", KernelSource::Ptx(&wrong)).unwrap();
    let checker = Checker::new(simd()).unwrap().with_cuda(vec![device]);
    let error = checker.check_all(&cases::of("scale")).unwrap_err();
    contains(&error, &["scale", "on emulated GPU", "tolerance"]);
}

#[test]
fn kernels_that_do_not_fit_replace_nothing() {
    let device = device();
    let source = only("scale", "scale_f32");
    for (module, ptx, parts) in [
        ("copy", source.clone(), &["mine.cu", "scale_f32", "fill_f32"][..]),
        ("nothing", source.clone(), &["nothing"]),
        (
            "scale",
            source.replacen(".u64 scale_f32_param_3", ".u32 scale_f32_param_3", 1),
            &["mine.cu", "scale_f32", "[8, 8, 8, 4]"],
        ),
        ("scale", source.replace("mul.rn.f32", "mul.frob.f32"), &["mine.cu", "mul.frob.f32"]),
        ("scale", ".version 7.0\n.target sm_80\n.address_size 64\n".into(), &["mine.cu", "no kernel"]),
    ] {
        contains(&replace(&device, module, KernelSource::Ptx(&ptx)).unwrap_err(), parts);
    }
    let (x, by) = (Tensor::full(3.0, &[4], DType::F32, &device), Tensor::full(2.0, &[1], DType::F32, &device));
    assert_eq!(ops::scale(&x.unwrap(), &by.unwrap()).unwrap().to_vec::<f32>().unwrap(), [6.0; 4]);
}

#[test]
fn a_function_for_cpus_does_not_replace_a_kernel_silently() {
    use kinglet_tensor::kernels::SCALE;
    let device = device();
    let (x, by) = (Tensor::full(3.0, &[4], DType::F32, &device), Tensor::full(2.0, &[1], DType::F32, &device));
    let (x, by) = (x.unwrap(), by.unwrap());
    device.hooks().replace(&SCALE, |cpu, args| SCALE.cpu()(cpu, args));
    contains(&ops::scale(&x, &by).unwrap_err(), &["scale", "CPU", "as_cuda()?.replace"]);
    device.hooks().restore(&SCALE);
    assert_eq!(ops::scale(&x, &by).unwrap().to_vec::<f32>().unwrap(), [6.0; 4]);
}

#[test]
fn what_is_replaced_again_is_unloaded() {
    // Each module keeps an array on the device.
    let device = Device::emulated(EmulatorOptions { memory_bytes: 64 << 20, ..EmulatorOptions::default() }).unwrap();
    let large = only("scale", "scale_f32").replacen(".visible", ".global .align 8 .b8 ballast[8388608];\n.visible", 1);
    for _ in 0..20 {
        replace(&device, "scale", KernelSource::Ptx(&large)).unwrap();
    }
}

/// What a graph has of a replaced kernel stays loaded until the graph is gone, and no longer.
#[test]
fn a_graph_keeps_the_kernels_that_it_was_captured_with() {
    let device = device();
    let cuda = device.as_cuda().unwrap();
    let ballast = ".global .align 8 .b8 ballast[8388608];\n.visible";
    let doubled = only("copy", "fill_f32").replacen("cvta.to.global", "add.f32 %f1, %f1, %f1;\n\tcvta.to.global", 1);
    assert_eq!(ones(&device), [1.0; 3]);
    let fill = || Tensor::full(1.0, &[3], DType::F32, &device);
    let before = cuda.available().unwrap();
    replace(&device, "copy", KernelSource::Ptx(&doubled.replacen(".visible", ballast, 1))).unwrap();
    let (graph, filled) = device.capture(fill).unwrap();
    let graphs = [graph, device.capture(fill).unwrap().0];
    for again in ["restore", "replace"] {
        match again {
            "restore" => cuda.restore("copy").unwrap(),
            _ => drop(replace(&device, "copy", KernelSource::Ptx(&only("copy", "fill_f32"))).unwrap()),
        }
        assert_eq!(ones(&device), [1.0; 3]);
        for graph in &graphs {
            graph.launch().unwrap();
        }
        assert_eq!(filled.to_vec::<f32>().unwrap(), [2.0; 3], "{again}");
        assert!(cuda.available().unwrap() < before - (8 << 20), "{again}: the module is loaded");
    }
    drop(graphs);
    drop(filled);
    assert!(cuda.available().unwrap() > before - (1 << 20), "the module is unloaded");
    assert_eq!(ones(&device), [1.0; 3]);
}

/// Nothing is half replaced or half restored in the middle of a capture.
#[test]
fn a_capture_refuses_to_replace() {
    let device = device();
    let doubled = only("copy", "fill_f32").replacen("cvta.to.global", "add.f32 %f1, %f1, %f1;\n\tcvta.to.global", 1);
    let capture = |work: &dyn Fn() -> kinglet_cuda::Result<()>| device.as_cuda().unwrap().capture(work).err().unwrap();
    let replaced = |ptx: &str| replace(&device, "copy", KernelSource::Ptx(ptx)).map(drop);
    contains(&capture(&|| replaced(&doubled)), &["capture"]);
    assert_eq!(ones(&device), [1.0; 3]);
    replaced(&doubled).unwrap();
    contains(&capture(&|| device.as_cuda().unwrap().restore("copy")), &["capture"]);
    assert_eq!(ones(&device), [2.0; 3]);
}

/// A launch runs one kernel or the other, while another thread exchanges them: none is unloaded in the middle of its work, which
/// the virtual GPU would tell.
#[test]
fn kernels_are_exchanged_while_others_launch() {
    let device = device();
    let doubled = only("copy", "fill_f32").replacen("cvta.to.global", "add.f32 %f1, %f1, %f1;\n\tcvta.to.global", 1);
    let (launched, done, wrong) = (AtomicU64::new(0), AtomicBool::new(false), Mutex::new(Vec::new()));
    let exchange = || {
        for i in 0..100 {
            match i % 2 {
                0 => drop(replace(&device, "copy", KernelSource::Ptx(&doubled)).unwrap()),
                _ => device.as_cuda().unwrap().restore("copy").unwrap(),
            }
            let before = launched.load(Ordering::Relaxed);
            while launched.load(Ordering::Relaxed) == before {
                std::thread::yield_now();
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let made = Tensor::full(1.0, &[1 << 14], DType::F32, &device);
                    launched.fetch_add(1, Ordering::Relaxed);
                    match made.and_then(|x| x.narrow(0, 9, 1)?.to_vec::<f32>()) {
                        Ok(value) if [[1.0], [2.0]].iter().any(|v| *v == *value) => {}
                        other => wrong.lock().unwrap().push(other.map_err(|e| e.to_string())),
                    }
                }
            });
        }
        let exchanged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(exchange));
        done.store(true, Ordering::Relaxed);
        exchanged.unwrap();
    });
    assert_eq!(wrong.into_inner().unwrap(), []);
}

#[test]
fn a_compiler_that_is_not_there_is_asked_for() {
    let options = CompilerOptions { nvrtc: Some(PathBuf::from("/nonexistent")), cache: None };
    let device = Cuda::emulated(EmulatorOptions::default()).unwrap();
    let error = device.replace("copy", "mine.cu", KernelSource::Cuda("int x;"), &options).unwrap_err();
    contains(&error, &["/nonexistent", "nvidia-cuda-nvrtc", "KINGLET_NVRTC"]);
}

/// The compiler that KINGLET_NVRTC names, as for the command line; results are kept nowhere.
fn compiler() -> CompilerOptions {
    CompilerOptions { nvrtc: std::env::var_os("KINGLET_NVRTC").map(PathBuf::from), cache: None }
}

const FILL: &str = r#"
#include "common.cuh"
// The parameters in another order, and each element twice as large.
KERNEL(256) fill_f32(f32* out, u64 n, f32 value) {
    u64 i = first_element();
    for (u32 k = 0; k < 4; k++) {
        if (i + k < n) out[i + k] = value + value;
    }
}
"#;

#[test]
#[ignore = "needs NVIDIA's run-time compiler: KINGLET_NVRTC"]
fn cuda_source_takes_the_place_of_a_kernel_with_arguments_by_name() {
    let device = device();
    assert_eq!(replace(&device, "copy", KernelSource::Cuda(FILL)).unwrap(), ["fill_f32"]);
    assert_eq!(ones(&device), [2.0; 3]);
    for (from, to, parts) in [
        ("value", "amount", &["mine.cu", "fill_f32", "amount", "value"][..]),
        ("u64 n", "u32 n", &["mine.cu", "fill_f32", "n", "u64", "u32"]),
        ("value + value", "value + worth", &["mine.cu", "worth"]),
        ("fill_f32", "fill_f64", &["mine.cu", "fill_f64", "fill_bf16"]),
    ] {
        contains(&replace(&device, "copy", KernelSource::Cuda(&FILL.replace(from, to))).unwrap_err(), parts);
    }
    let number = "#include \"common.cuh\"\nKERNEL(256) fill_f32(u64 out) {}";
    contains(&replace(&device, "copy", KernelSource::Cuda(number)).unwrap_err(), &["out", "a pointer", "u64"]);
    assert_eq!(ones(&device), [2.0; 3], "a failed replacement changes nothing");
}

#[test]
#[ignore = "needs NVIDIA's run-time compiler: KINGLET_NVRTC"]
fn what_was_compiled_is_kept() {
    let folder = std::env::temp_dir().join(format!("kinglet-kernels-{}", std::process::id()));
    let options = CompilerOptions { cache: Some(folder.clone()), ..compiler() };
    let cuda = Cuda::emulated(EmulatorOptions::default()).unwrap();
    cuda.replace("copy", "mine.cu", KernelSource::Cuda(FILL), &options).unwrap();
    let kept: Vec<PathBuf> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(kept.len(), 1);
    // What is not whole is made again.
    let whole = std::fs::read(&kept[0]).unwrap();
    std::fs::write(&kept[0], &whole[..whole.len() / 2]).unwrap();
    cuda.replace("copy", "mine.cu", KernelSource::Cuda(FILL), &options).unwrap();
    assert_eq!(std::fs::read(&kept[0]).unwrap(), whole);
    std::fs::remove_dir_all(folder).unwrap();
}
