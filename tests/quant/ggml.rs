//! ggml blocks against the Python package `gguf`.

use super::fixture::{Fixture, assert_bits, levels};
use kinglet_tensor::cpu::ggml::{Format, decode};

#[test]
fn blocks_decode_to_the_bits_of_gguf() {
    let file = Fixture::open("ggml.safetensors");
    for format in Format::ALL {
        let (blocks, values) = (file.get(&format!("{format}.blocks")), file.get(&format!("{format}.values")));
        assert_eq!(blocks.shape[1], format.block_bytes(), "{format}");
        assert_eq!(values.shape, [blocks.shape[0], format.block_len()], "{format}");
        for simd in levels() {
            let mut out = vec![f32::NAN; values.shape.iter().product()];
            decode(simd, format, &blocks.bytes, &mut out);
            assert_bits(&out, &values.f32(), &format!("{format} {simd:?}"));
        }
    }
}
