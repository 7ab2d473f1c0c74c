//! One row of a root-mean-square norm, both ways.

use crate::Float;
use crate::cpu::reduce::{LANES, fold};
use crate::cpu::{math, simd};

/// Σx² and Σ(dy w)x of a row, each as [`crate::cpu::reduce::dot`] adds it up.
#[inline(always)]
fn sums<T: Float>(dy: &[T], x: &[T], w: &[f32]) -> [f32; 2] {
    let mut lanes = [[0.0; LANES]; 2];
    let mut add = |dy: &[T; LANES], x: &[T; LANES], w: &[f32; LANES]| {
        for i in 0..LANES {
            let (g, x) = (dy[i].wide() * w[i], x[i].wide());
            lanes[0][i] = x.mul_add(x, lanes[0][i]);
            lanes[1][i] = g.mul_add(x, lanes[1][i]);
        }
    };
    let ((dy, dy_rest), (x, x_rest), (w, w_rest)) = (dy.as_chunks(), x.as_chunks(), w.as_chunks());
    for ((dy, x), w) in dy.iter().zip(x).zip(w) {
        add(dy, x, w);
    }
    if !x_rest.is_empty() {
        add(&filled_up(dy_rest), &filled_up(x_rest), &filled_up(w_rest));
    }
    lanes.map(|lanes| fold(lanes, |a, b| a + b))
}

/// Σx², as above.
#[inline(always)]
fn sum_of_squares<T: Float>(x: &[T]) -> f32 {
    let mut lanes = [0.0; LANES];
    let mut add = |x: &[T; LANES]| {
        for i in 0..LANES {
            let x = x[i].wide();
            lanes[i] = x.mul_add(x, lanes[i]);
        }
    };
    let (chunks, rest) = x.as_chunks();
    chunks.iter().for_each(&mut add);
    if !rest.is_empty() {
        add(&filled_up(rest));
    }
    fold(lanes, |a, b| a + b)
}

/// `x`, and zeros behind it.
#[inline(always)]
fn filled_up<T: Float>(x: &[T]) -> [T; LANES] {
    let mut all = [T::zeroed(); LANES];
    all[..x.len()].copy_from_slice(x);
    all
}

/// 1 / sqrt(mean(x²) + eps)
#[inline(always)]
fn inverse_rms(sum_of_squares: f32, width: usize, eps: f32) -> f32 {
    math::rsqrt(sum_of_squares / width as f32 + eps)
}

simd! {
    /// sum = x + residual
    pub(super) fn add<T: Float>(x: &[T], residual: &[T], sum: &mut [T]) {
        for ((sum, x), residual) in sum.iter_mut().zip(x).zip(residual) {
            *sum = T::from_f32(x.wide() + residual.wide());
        }
    }

    /// y += before
    pub(super) fn add_to<T: Float>(before: &[T], y: &mut [T]) {
        for (y, before) in y.iter_mut().zip(before) {
            *y = T::from_f32(y.wide() + before.wide());
        }
    }

    /// y = round(x r) w with r = 1 / sqrt(mean(x²) + eps)
    pub(super) fn forward_row<T: Float>(x: &[T], w: &[f32], eps: f32, y: &mut [T]) {
        let r = inverse_rms(sum_of_squares(x), x.len(), eps);
        for ((y, x), &w) in y.iter_mut().zip(x).zip(w) {
            *y = T::from_f32(T::from_f32(x.wide() * r).wide() * w);
        }
    }

    /// With g = dy w and n = x r: dx = r (g - n mean(g n)).
    pub(super) fn backward_row<T: Float>(dy: &[T], x: &[T], w: &[f32], eps: f32, dx: &mut [T]) {
        let [squares, products] = sums(dy, x, w);
        let r = inverse_rms(squares, x.len(), eps);
        let mean = products * r / x.len() as f32;
        for (((dx, dy), x), &w) in dx.iter_mut().zip(dy).zip(x).zip(w) {
            *dx = T::from_f32(r * (-mean * r).mul_add(x.wide(), dy.wide() * w));
        }
    }

    /// dw += dy x r
    pub(super) fn backward_weight_row<T: Float>(dy: &[T], x: &[T], eps: f32, dw: &mut [f32]) {
        let r = inverse_rms(sum_of_squares(x), x.len(), eps);
        for ((dw, dy), x) in dw.iter_mut().zip(dy).zip(x) {
            *dw = dy.wide().mul_add(x.wide() * r, *dw);
        }
    }

    /// [`backward_row`] and [`backward_weight_row`] in one.
    pub(super) fn backward_both_row<T: Float>(dy: &[T], x: &[T], w: &[f32], eps: f32, dx: &mut [T], dw: &mut [f32]) {
        let [squares, products] = sums(dy, x, w);
        let r = inverse_rms(squares, x.len(), eps);
        let mean = products * r / x.len() as f32;
        for ((((dx, dw), dy), x), &w) in dx.iter_mut().zip(dw).zip(dy).zip(x).zip(w) {
            let (dy, x) = (dy.wide(), x.wide());
            *dx = T::from_f32(r * (-mean * r).mul_add(x, dy * w));
            *dw = dy.mul_add(x * r, *dw);
        }
    }
}
