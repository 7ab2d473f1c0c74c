//! An op of your own: a kernel through the device's door, its gradient rule on the tape, and its check against the
//! oracle in every dtype, layout and thread count.
//!
//! ```text
//! cargo run --release --example custom_op
//! ```

use kinglet::autograd::{Grads, Save, Tape, Var};
use kinglet::tensor::cpu::Cpu;
use kinglet::tensor::{TensorMut, kernel, ops};
use kinglet::{CpuOptions, Device, Result, Tensor};

/// softplus(x) = ln(1 + exp(x)), in f32.
fn softplus<'t>(x: &Var<'t>) -> Result<Var<'t>> {
    let y = run_softplus(x.value())?;
    // y = ln(1 + e^x): dx = dy · e^x / (1 + e^x) = dy · sigmoid(x)
    x.tape().record("softplus", &[x], y).save([Save::Var(x)]).recipe(|saved| run_softplus(saved.tensor(0)?)).rule(
        |dy, saved, sink| {
            let slope = ops::unary(ops::Unary::Sigmoid, saved.tensor(0)?)?;
            sink.add(0, ops::mul(dy, &slope)?)
        },
    )
}

struct Softplus<'a> {
    x: &'a Tensor,
    out: TensorMut<'a>,
}
kernel!(SOFTPLUS = "softplus", Softplus, softplus_cpu);

fn run_softplus(x: &Tensor) -> Result<Tensor> {
    let x = x.contiguous()?;
    let mut out = x.device().alloc(x.shape(), x.dtype())?;
    x.device().run(&SOFTPLUS, Softplus { x: &x, out: out.view() })?;
    Ok(out.finish())
}

fn softplus_cpu(cpu: &Cpu, mut args: Softplus<'_>) -> Result<()> {
    const CHUNK: usize = 4096; // work is cut by shape, never by the number of threads
    let x = args.x.as_slice::<f32>()?;
    cpu.chunks(args.out.as_mut_slice::<f32>()?, CHUNK, |i, out| {
        for (out, &x) in out.iter_mut().zip(&x[i * CHUNK..]) {
            *out = x.max(0.0) + (-x.abs()).exp().ln_1p();
        }
    });
    Ok(())
}

fn main() -> Result<()> {
    let device = Device::cpu(CpuOptions::default())?;
    let tape = Tape::new();
    let x = tape.leaf(Tensor::from_vec(vec![-2f32, -0.5, 0.0, 0.5, 2.0], &[5], &device)?);
    let y = softplus(&x)?;
    let leaves = tape.backward(&y.sum_all()?, &mut Grads::none())?;
    println!("softplus(x)  = {:?}", y.value().to_vec::<f32>()?);
    if let Some(gradient) = leaves.get(&x) {
        println!("its gradient = {:?}", gradient.to_vec::<f32>()?);
    }

    // How long did each launch take? Anyone who holds the device can listen, or replace a kernel.
    device.hooks().listen(|launch| println!("{}: {:?}", launch.kernel, launch.time));
    run_softplus(&Tensor::zeros(&[1 << 20], kinglet::DType::F32, &device)?)?;
    Ok(())
}
