//! Attention over segments.

use crate::{Array, Case, Input, Scalar, float};
use kinglet_autograd::{Var, ops};
use kinglet_tensor::ops::{Mask, Segment, Segments};
use kinglet_tensor::{DType, Result};

/// Heads, key heads and their width; which queries see which keys.
#[derive(Clone, Debug)]
pub struct Attention {
    heads: [usize; 3],
    /// (queries, keys) of each segment; the keys lie one after another with a gap of one entry.
    segments: &'static [(usize, usize)],
    mask: Mask,
    dtypes: &'static [DType],
}

impl Attention {
    fn segments(&self) -> Segments {
        let (mut q_start, mut kv_start) = (0, 0);
        let segment = |&(q_len, kv_len): &(usize, usize)| {
            let segment = Segment { q_start, q_len, kv_start, kv_len };
            (q_start, kv_start) = (q_start + q_len, kv_start + kv_len + 1);
            segment
        };
        Segments::new(self.segments.iter().map(segment).collect()).expect("the instances are valid")
    }

    /// Whether query `i` of `q_len` sees key `j` of `kv_len`.
    fn sees(&self, i: usize, q_len: usize, j: usize, kv_len: usize) -> bool {
        let place = i + kv_len - q_len.min(kv_len);
        match self.mask {
            Mask::Full => true,
            Mask::Causal => j <= place,
            Mask::Window(n) => j <= place && place < j + n,
        }
    }
}

impl Case for Attention {
    const NAME: &'static str = "attention";

    fn instances() -> Vec<Self> {
        use Mask::{Causal, Full, Window};
        let of = |dtypes: &'static [DType]| move |heads, segments, mask| Attention { heads, segments, mask, dtypes };
        let (case, halves) = (of(&[DType::F32, DType::BF16, DType::F16]), of(&[DType::BF16, DType::F16]));
        vec![
            case([1, 1, 1], &[(1, 1)], Causal),
            case([4, 2, 8], &[(13, 13)], Causal),
            case([4, 2, 8], &[(13, 5)], Full),
            case([6, 2, 5], &[(3, 3), (11, 11), (1, 1)], Causal),
            case([2, 1, 7], &[(9, 9), (20, 20)], Window(4)),
            // Prefill after a cache, and decoding.
            case([3, 3, 16], &[(4, 30), (1, 17)], Causal),
            case([2, 2, 4], &[(1, 200)], Window(7)),
            // Widths of real heads, and one beside them.
            case([2, 1, 64], &[(6, 6)], Causal),
            case([2, 1, 96], &[(5, 9)], Causal),
            case([2, 1, 128], &[(6, 6), (2, 2)], Causal),
            case([1, 1, 131], &[(4, 4)], Full),
            case([2, 1, 256], &[(5, 5)], Window(3)),
            // Across tiles of keys and blocks of queries.
            case([2, 1, 3], &[(130, 130), (60, 99)], Causal),
            // Lengths around those of tiles, and groups that tiles cut.
            case([3, 1, 8], &[(63, 63), (65, 65)], Causal),
            halves([8, 1, 8], &[(33, 64)], Full),
            halves([1, 1, 40], &[(64, 64), (3, 130)], Window(33)),
            halves([3, 1, 80], &[(44, 44)], Window(100)),
            halves([1, 1, 136], &[(33, 40)], Causal),
            halves([1, 1, 256], &[(17, 40)], Window(20)),
            // More segments than a warp looks at at a time: the same code for every dtype.
            halves([1, 1, 8], &[(1, 2); 34], Causal),
            // Few queries over many keys, some of which are split over blocks.
            case([4, 2, 8], &[(1, 257), (1, 7), (1, 1)], Causal),
            case([3, 1, 8], &[(5, 260)], Full),
            halves([1, 1, 40], &[(2, 500), (1, 290)], Window(290)),
            halves([2, 1, 256], &[(1, 132)], Causal),
            case([1, 1, 131], &[(1, 129)], Causal),
        ]
    }

    fn timed() -> Vec<Self> {
        let case =
            |heads, segments| Attention { heads, segments, mask: Mask::Causal, dtypes: &[DType::F32, DType::BF16] };
        vec![case([9, 9, 64], &[(1024, 1024)]), case([9, 3, 64], &[(512, 512)]), case([9, 3, 64], &[(1, 512)])]
    }

    fn inputs(&self) -> Vec<Input> {
        let [heads, kv_heads, width] = self.heads;
        let queries: usize = self.segments.iter().map(|s| s.0).sum();
        let keys: usize = self.segments.iter().map(|s| s.1 + 1).sum();
        let kv = [keys, kv_heads, width];
        vec![float("q", &[queries, heads, width]), float("k", &kv), float("v", &kv)]
    }

    fn truth<S: Scalar>(&self, inputs: &[Array<S>]) -> Array<S> {
        let ([q, k, v], [heads, kv_heads, width]) = (inputs, self.heads) else { unreachable!("three inputs") };
        let scale = S::from_f64(f64::from(self.scale()));
        let sum = |terms: &mut dyn Iterator<Item = S>| {
            let first = terms.next().expect("a query sees some key");
            terms.fold(first, |a, b| a + b)
        };
        let mut out = Vec::new();
        for s in self.segments().list() {
            for (i, head) in (0..s.q_len).flat_map(|i| (0..heads).map(move |head| (i, head))) {
                let kv_head = head / (heads / kv_heads);
                let keys: Vec<usize> = (0..s.kv_len).filter(|&j| self.sees(i, s.q_len, j, s.kv_len)).collect();
                let score = |&j: &usize| {
                    let products = |d| q.at(&[s.q_start + i, head, d]) * k.at(&[s.kv_start + j, kv_head, d]);
                    (sum(&mut (0..width).map(products)) * scale).exp()
                };
                let weights: Vec<S> = keys.iter().map(score).collect();
                let total = sum(&mut weights.iter().copied());
                for d in 0..width {
                    let terms = keys.iter().zip(&weights).map(|(&j, &w)| w * v.at(&[s.kv_start + j, kv_head, d]));
                    out.push(sum(&mut { terms }) / total);
                }
            }
        }
        Array::new(&q.shape, out)
    }

    // Kernels for 16 bits round weights and score gradients for the products that they enter. `storage` has room for it: it
    // counts a rounding of the other operand of each of these products (v, dy, k, q), which costs as much.
    fn run<'t>(&self, inputs: &[Var<'t>]) -> Result<Var<'t>> {
        ops::attention(&inputs[0], &inputs[1], &inputs[2], &self.segments(), self.mask, self.scale())
    }

    fn dtypes(&self) -> &'static [DType] {
        self.dtypes
    }

    fn flops(&self) -> usize {
        let pairs = |&(q, kv): &(usize, usize)| {
            (0..q).flat_map(|i| (0..kv).map(move |j| (i, j))).filter(|&(i, j)| self.sees(i, q, j, kv)).count()
        };
        4 * self.heads[0] * self.heads[2] * self.segments.iter().map(pairs).sum::<usize>()
    }
}

impl Attention {
    fn scale(&self) -> f32 {
        1.0 / (self.heads[2] as f32).sqrt()
    }
}
