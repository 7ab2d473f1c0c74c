//! Random shapes and strides: views, copies, broadcasts, reductions and products against a plain array.
#![allow(clippy::unwrap_used)]

use kinglet_oracle::Array;
use kinglet_tensor::ops::{self, Reduce};
use kinglet_tensor::{DType, Device, Tensor};
use proptest::prelude::*;

/// One step of a chain of views; numbers are taken modulo what is there.
#[derive(Clone, Debug)]
enum View {
    Narrow(usize, usize, usize),
    Transpose(usize, usize),
    Flip(usize),
    Select(usize, usize),
    Unsqueeze(usize),
    Repeat(usize, usize),
    Merge(usize),
    Split(usize, usize),
}

fn view() -> impl Strategy<Value = View> {
    let n = 0..12usize;
    prop_oneof![
        (n.clone(), n.clone(), n.clone()).prop_map(|(d, a, b)| View::Narrow(d, a, b)),
        (n.clone(), n.clone()).prop_map(|(a, b)| View::Transpose(a, b)),
        n.clone().prop_map(View::Flip),
        (n.clone(), n.clone()).prop_map(|(d, i)| View::Select(d, i)),
        n.clone().prop_map(View::Unsqueeze),
        (n.clone(), 1..4usize).prop_map(|(d, times)| View::Repeat(d, times)),
        n.clone().prop_map(View::Merge),
        (n.clone(), n).prop_map(|(d, by)| View::Split(d, by)),
    ]
}

/// A tensor after a chain of views, and the plain array that it must equal.
fn viewed(shape: &[usize], views: &[View], device: &Device) -> (Tensor, Array<f32>) {
    let mut next = 0;
    let mut array = Array::from_fn(shape, |_| {
        next += 1;
        ((next * 37) % 101) as f32 / 8.0 - 6.0
    });
    let mut tensor = Tensor::from_slice(&array.data, shape, device).unwrap();
    for view in views {
        (tensor, array) = apply(view, &tensor, &array);
    }
    (tensor, array)
}

fn apply(view: &View, tensor: &Tensor, array: &Array<f32>) -> (Tensor, Array<f32>) {
    let unchanged = || (tensor.clone(), array.clone());
    let rank = array.shape.len();
    let mut shape = array.shape.clone();
    match *view {
        View::Unsqueeze(d) if rank < 5 => {
            shape.insert(d % (rank + 1), 1);
            (tensor.unsqueeze(d % (rank + 1)).unwrap(), Array::new(&shape, array.data.clone()))
        }
        _ if rank == 0 => unchanged(),
        View::Narrow(d, start, len) => {
            let d = d % rank;
            let start = start % shape[d];
            let len = 1 + len % (shape[d] - start);
            shape[d] = len;
            let narrowed = Array::from_fn(&shape, |i| array.at(&changed(i, d, i[d] + start)));
            (tensor.narrow(d, start, len).unwrap(), narrowed)
        }
        View::Transpose(a, b) => {
            let (a, b) = (a % rank, b % rank);
            shape.swap(a, b);
            let swapped = Array::from_fn(&shape, |i| array.at(&changed(&changed(i, a, i[b]), b, i[a])));
            (tensor.transpose(a, b).unwrap(), swapped)
        }
        View::Flip(d) => {
            let d = d % rank;
            let flipped = Array::from_fn(&shape, |i| array.at(&changed(i, d, shape[d] - 1 - i[d])));
            (tensor.flip(d).unwrap(), flipped)
        }
        View::Select(d, index) => {
            let d = d % rank;
            let index = index % shape.remove(d);
            let selected = Array::from_fn(&shape, |i| array.at(&[&i[..d], &[index], &i[d..]].concat()));
            (tensor.select(d, index).unwrap(), selected)
        }
        View::Repeat(d, times) => {
            let d = d % rank;
            if shape[d] != 1 || array.data.len() * times > 5000 {
                return unchanged();
            }
            shape[d] = times;
            (tensor.broadcast_to(&shape).unwrap(), Array::from_fn(&shape, |i| array.at_broadcast(i)))
        }
        View::Merge(d) if rank > 1 => {
            let d = d % (rank - 1);
            shape[d] *= shape.remove(d + 1);
            (tensor.reshape(&shape).unwrap(), Array::new(&shape, array.data.clone()))
        }
        View::Split(d, by) if rank < 5 => {
            let (d, by) = (d % rank, 1 + by % 4);
            if !shape[d].is_multiple_of(by) {
                return unchanged();
            }
            shape[d] /= by;
            shape.insert(d, by);
            (tensor.reshape(&shape).unwrap(), Array::new(&shape, array.data.clone()))
        }
        _ => unchanged(),
    }
}

fn changed(index: &[usize], d: usize, to: usize) -> Vec<usize> {
    let mut index = index.to_vec();
    index[d] = to;
    index
}

fn device() -> Device {
    kinglet_oracle::device(2)
}

fn bits(t: &Tensor) -> Vec<u32> {
    t.to_vec::<f32>().unwrap().iter().map(|v| v.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn views_and_copies(shape in prop::collection::vec(1..7usize, 0..4), views in prop::collection::vec(view(), 0..8)) {
        let device = device();
        let (tensor, array) = viewed(&shape, &views, &device);
        prop_assert_eq!(tensor.shape(), &array.shape[..]);
        prop_assert_eq!(tensor.to_vec::<f32>().unwrap(), array.data.clone());
        // Through bf16 (these values need 7 bits) and back, and into a part of something larger.
        let there = tensor.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
        prop_assert_eq!(there.as_slice::<f32>().unwrap(), &array.data[..]);
        let mut out = device.alloc(&[array.data.len() + 2], DType::F32).unwrap();
        ops::fill(&mut out.view(), 0.5).unwrap();
        ops::copy_into(&tensor, out.view().part(1, tensor.shape()).unwrap()).unwrap();
        let want: Vec<f32> = [0.5].into_iter().chain(array.data).chain([0.5]).collect();
        prop_assert_eq!(out.finish().to_vec::<f32>().unwrap(), want);
    }

    #[test]
    fn broadcast_operations(
        shape in prop::collection::vec(1..5usize, 0..4),
        ones in prop::collection::vec(prop::bool::ANY, 6),
        lead in 0..3usize,
        views in prop::collection::vec(view(), 0..5),
    ) {
        let device = device();
        let (a, a_array) = viewed(&shape, &views, &device);
        // The other side: trailing dimensions of the first, some of them 1.
        let lead = lead.min(a.rank());
        let other: Vec<usize> = a.shape()[lead..].iter().zip(&ones).map(|(&d, &one)| if one { 1 } else { d }).collect();
        let (b, b_array) = viewed(&other, &[], &device);
        let want = |f: fn(f32, f32) -> f32| Array::from_fn(&a_array.shape, |i| f(a_array.at(i), b_array.at_broadcast(i)));
        prop_assert_eq!(ops::sub(&a, &b).unwrap().to_vec::<f32>().unwrap(), want(|x, y| x - y).data);
        prop_assert_eq!(ops::mul(&b, &a).unwrap().to_vec::<f32>().unwrap(), want(|x, y| y * x).data);
        prop_assert_eq!(ops::maximum(&a, &b).unwrap().to_vec::<f32>().unwrap(), want(f32::max).data);
    }

    /// Sums of these values are exact in f32, so any order must give the plain sum.
    #[test]
    fn reductions(
        shape in prop::collection::vec(1..6usize, 1..4),
        views in prop::collection::vec(view(), 0..6),
        reduced in prop::collection::vec(prop::bool::ANY, 6),
    ) {
        let device = device();
        let (tensor, array) = viewed(&shape, &views, &device);
        let dims: Vec<usize> = (0..tensor.rank()).filter(|&d| reduced[d]).collect();
        let kept: Vec<usize> = (0..tensor.rank()).map(|d| if reduced[d] { 1 } else { array.shape[d] }).collect();
        let mut sum = Array::from_fn(&kept, |_| 0f32);
        let mut max = Array::from_fn(&kept, |_| f32::NEG_INFINITY);
        Array::from_fn(&array.shape, |i| {
            let at: Vec<usize> = i.iter().zip(&kept).map(|(&i, &k)| if k == 1 { 0 } else { i }).collect();
            sum.set(&at, sum.at(&at) + array.at(i));
            max.set(&at, max.at(&at).max(array.at(i)));
        });
        let got = ops::reduce(Reduce::Sum, &tensor, &dims, true).unwrap();
        prop_assert_eq!(got.shape(), &kept[..]);
        prop_assert_eq!(got.to_vec::<f32>().unwrap(), sum.data.clone());
        prop_assert_eq!(ops::reduce(Reduce::Max, &tensor, &dims, false).unwrap().to_vec::<f32>().unwrap(), max.data);
        prop_assert_eq!(ops::sum_to(&tensor, &kept).unwrap().to_vec::<f32>().unwrap(), sum.data);
    }

    /// The order of summation of a reduction depends on shapes alone, not on where the elements lie.
    #[test]
    fn reductions_have_the_same_bits_in_every_layout(rows in 1..300usize, cols in 1..90usize, over in 0..2usize) {
        let device = device();
        let values: Vec<f32> = (0..rows * cols).map(|i| (i as f32 * 0.7).sin()).collect();
        let plain = Tensor::from_slice(&values, &[rows, cols], &device).unwrap();
        let turned = plain.transpose(0, 1).unwrap().contiguous().unwrap().transpose(0, 1).unwrap();
        prop_assert!(rows == 1 || cols == 1 || !turned.is_contiguous());
        let sum = |x: &Tensor| bits(&ops::reduce(Reduce::Sum, x, &[over], false).unwrap());
        prop_assert_eq!(sum(&plain), sum(&turned));
    }

    /// Products of small whole numbers are exact, whichever way they are added up.
    #[test]
    fn products(
        [m, k, n] in prop::array::uniform3(1..40usize),
        batch in 1..4usize,
        [a_turned, b_turned, a_flipped, b_shared] in prop::array::uniform4(prop::bool::ANY),
    ) {
        let device = device();
        let matrix = |rows: usize, cols: usize, turned: bool, seed: usize| {
            let values: Vec<f32> = (0..batch * rows * cols).map(|i| ((i * 31 + seed) % 17) as f32 - 8.0).collect();
            let shape = if turned { [batch, cols, rows] } else { [batch, rows, cols] };
            let x = Tensor::from_slice(&values, &shape, &device).unwrap();
            if turned { x.transpose(1, 2).unwrap() } else { x }
        };
        let (mut a, mut b) = (matrix(m, k, a_turned, 3), matrix(k, n, b_turned, 5));
        if a_flipped {
            a = a.flip(2).unwrap();
        }
        if b_shared {
            b = b.select(0, batch - 1).unwrap();
        }
        let plain = |t: &Tensor| Array::new(t.shape(), t.to_vec::<f32>().unwrap());
        let (a_array, b_array) = (plain(&a), plain(&b));
        let want = Array::from_fn(&[batch, m, n], |i| {
            (0..k).map(|k| a_array.at_broadcast(&[i[0], i[1], k]) * b_array.at_broadcast(&[i[0], k, i[2]])).sum::<f32>()
        });
        prop_assert_eq!(ops::matmul(&a, &b).unwrap().to_vec::<f32>().unwrap(), want.data);
    }
}
