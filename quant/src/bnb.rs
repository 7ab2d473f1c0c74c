//! bitsandbytes' 4-bit tensors in a model folder: a weight `X` comes with companions that hold its scales, maps
//! and, as JSON in bytes, its format (bitsandbytes 0.41 to 0.50, `QuantState.as_dict`):
//!
//! | tensor | contents |
//! |---|---|
//! | `X` | u8 [elements / 2, 1], the first element of a pair in the high nibble |
//! | `X.absmax` | a scale a block: f32, or u8 when nested |
//! | `X.quant_map` | f32 `[16]`, the levels |
//! | `X.nested_absmax`, `X.nested_quant_map` | f32 [scales / 256] and f32 `[256]`, when nested |
//! | `X.quant_state.bitsandbytes__nf4` (or `__fp4`) | u8, the JSON |

use crate::four_bit::{FourBit, Scales};
use kinglet_tensor::cpu::nf4::{ABSMAX_BLOCK, BLOCK_SIZES, Format};
use kinglet_tensor::{DType, Error, Result, Tensor};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

const ABSMAX: &str = "absmax";
const MAP: &str = "quant_map";
const NESTED_ABSMAX: &str = "nested_absmax";
const NESTED_MAP: &str = "nested_quant_map";
/// Format, its name in the JSON, and the companion that holds the JSON.
const STATES: [(Format, &str, &str); 2] =
    [(Format::Nf4, "nf4", "quant_state.bitsandbytes__nf4"), (Format::Fp4, "fp4", "quant_state.bitsandbytes__fp4")];

/// Bytes of JSON that are read; it has some 150.
const MAX_STATE: usize = 4096;

/// The JSON of a weight's state.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    quant_type: String,
    blocksize: usize,
    dtype: String,
    shape: [usize; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    nested_blocksize: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nested_dtype: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nested_offset: Option<f64>,
}

/// The weight that the tensor `name` is a companion of, if it is one.
#[must_use]
pub fn companion_of(name: &str) -> Option<&str> {
    let suffixes = [ABSMAX, MAP, NESTED_ABSMAX, NESTED_MAP, STATES[0].2, STATES[1].2];
    suffixes.iter().find_map(|suffix| name.strip_suffix(suffix)?.strip_suffix('.'))
}

/// The 4-bit matrix called `name`, or `None` if no state says that it is one. `lookup` finds a tensor by its name,
/// on the host.
///
/// # Errors
/// When a companion is missing, has a wrong dtype or size, or contradicts another: the error names the tensor.
pub fn read(name: &str, lookup: impl Fn(&str) -> Result<Option<Tensor>>) -> Result<Option<FourBit>> {
    let companions = Companions { name, lookup };
    let mut states = Vec::new();
    for (format, quant_type, suffix) in STATES {
        if let Some(json) = companions.find(suffix)? {
            let state = parse_state(&json).and_then(|state| check_state(state, quant_type));
            states.push((format, state.map_err(|e| e.context(companions.name_of(suffix)))?));
        }
    }
    let (format, state) = match states.pop() {
        None => return Ok(None),
        Some(_) if !states.is_empty() => return Err(Error::invalid(format!("{name}: has an NF4 and an FP4 state"))),
        Some(found) => found,
    };
    companions.check_map(MAP, format.levels())?;
    let len = state.shape[0] * state.shape[1]; // check_state: does not overflow
    let blocks = len.div_ceil(state.blocksize);
    let codes = expect((companions.lookup)(name)?, name, DType::U8, len.div_ceil(2))?;
    let scales = match state.nested_offset {
        None => Scales::Plain(companions.finite(ABSMAX, blocks)?),
        Some(offset) => {
            let map = companions.finite(NESTED_MAP, 256)?.to_vec::<f32>()?;
            Scales::Nested {
                codes: companions.get(ABSMAX, DType::U8, blocks)?,
                absmax: companions.finite(NESTED_ABSMAX, blocks.div_ceil(ABSMAX_BLOCK))?,
                map: Arc::new(map.try_into().expect("checked: 256 elements")),
                offset: offset as f32,
            }
        }
    };
    let dtype = parse_dtype(&state.dtype).expect("checked in check_state");
    FourBit::new(format, state.blocksize, state.shape, dtype, codes, scales).map(Some).map_err(|e| e.context(name))
}

/// The tensors that a file holds for `weight` under the name `name`.
///
/// # Errors
/// When the weight is not on the host, or memory runs out.
pub fn write(name: &str, weight: &FourBit) -> Result<Vec<(String, Tensor)>> {
    let device = weight.device();
    let (_, quant_type, suffix) = STATES.into_iter().find(|s| s.0 == weight.format()).expect("lists every format");
    let mut state = State {
        quant_type: quant_type.to_owned(),
        blocksize: weight.blocksize(),
        dtype: dtype_name(weight.dtype())?.to_owned(),
        shape: weight.shape(),
        nested_blocksize: None,
        nested_dtype: None,
        nested_offset: None,
    };
    let mut tensors = vec![
        (name.to_owned(), weight.codes().reshape(&[weight.codes().len(), 1])?),
        (format!("{name}.{MAP}"), Tensor::from_slice(weight.format().levels(), &[16], device)?),
    ];
    match weight.scales() {
        Scales::Plain(absmax) => tensors.push((format!("{name}.{ABSMAX}"), absmax.clone())),
        Scales::Nested { codes, absmax, map, offset } => {
            state.nested_blocksize = Some(ABSMAX_BLOCK);
            state.nested_dtype = Some("float32".to_owned());
            state.nested_offset = Some(f64::from(*offset));
            tensors.push((format!("{name}.{ABSMAX}"), codes.clone()));
            tensors.push((format!("{name}.{NESTED_ABSMAX}"), absmax.clone()));
            tensors.push((format!("{name}.{NESTED_MAP}"), Tensor::from_slice(&map[..], &[256], device)?));
        }
    }
    let json = serde_json::to_vec(&state).expect("strings and numbers always serialise");
    tensors.push((format!("{name}.{suffix}"), Tensor::from_slice(&json, &[json.len()], device)?));
    Ok(tensors)
}

/// The tensors around the weight `name`.
struct Companions<'a, F> {
    name: &'a str,
    lookup: F,
}

impl<F: Fn(&str) -> Result<Option<Tensor>>> Companions<'_, F> {
    fn name_of(&self, suffix: &str) -> String {
        format!("{}.{suffix}", self.name)
    }

    fn find(&self, suffix: &str) -> Result<Option<Tensor>> {
        (self.lookup)(&self.name_of(suffix))
    }

    fn get(&self, suffix: &str, dtype: DType, len: usize) -> Result<Tensor> {
        expect(self.find(suffix)?, &self.name_of(suffix), dtype, len)
    }

    /// An f32 tensor without NaN or infinity.
    fn finite(&self, suffix: &str, len: usize) -> Result<Tensor> {
        let tensor = self.get(suffix, DType::F32, len)?;
        match tensor.as_slice::<f32>()?.iter().position(|v| !v.is_finite()) {
            None => Ok(tensor),
            Some(at) => Err(Error::invalid(format!("{}: element {at} is not finite", self.name_of(suffix)))),
        }
    }

    fn check_map(&self, suffix: &str, levels: &[f32; 16]) -> Result<()> {
        if self.get(suffix, DType::F32, 16)?.as_slice::<f32>()? == levels {
            return Ok(());
        }
        Err(Error::invalid(format!("{}: not the levels of the format", self.name_of(suffix))))
    }
}

fn expect(tensor: Option<Tensor>, name: &str, dtype: DType, len: usize) -> Result<Tensor> {
    let Some(tensor) = tensor else {
        return Err(Error::invalid(format!("{name}: missing from a 4-bit weight")));
    };
    if tensor.dtype() != dtype || tensor.len() != len {
        let found = format!("{} {:?}", tensor.dtype(), tensor.shape());
        return Err(Error::invalid(format!("{name}: {found}, where {len} elements of {dtype} belong")));
    }
    tensor.contiguous()
}

fn parse_state(json: &Tensor) -> Result<State> {
    if json.dtype() != DType::U8 || json.len() > MAX_STATE {
        let found = format!("{} {:?}", json.dtype(), json.shape());
        return Err(Error::invalid(format!("{found}, where at most {MAX_STATE} bytes of JSON belong")));
    }
    serde_json::from_slice(&json.to_vec::<u8>()?).map_err(|e| Error::invalid(e.to_string()))
}

fn check_state(state: State, quant_type: &str) -> Result<State> {
    let [rows, columns] = state.shape;
    let problem = if state.quant_type != quant_type {
        format!("quant_type {:?}, not {quant_type:?} as its name says", state.quant_type)
    } else if !state.blocksize.is_power_of_two() || !BLOCK_SIZES.contains(&state.blocksize) {
        format!("blocksize {} is not a power of two from 32 to 4096", state.blocksize)
    } else if parse_dtype(&state.dtype).is_none() {
        format!("dtype {:?} is not float32, bfloat16 or float16", state.dtype)
    } else if rows.checked_mul(columns).is_none_or(|len| isize::try_from(len).is_err()) {
        format!("shape [{rows}, {columns}] has too many elements")
    } else {
        match (state.nested_blocksize, state.nested_dtype.as_deref(), state.nested_offset) {
            (None, None, None) => return Ok(state),
            (Some(ABSMAX_BLOCK), Some("float32"), Some(offset)) if (offset as f32).is_finite() => return Ok(state),
            other => format!("nested blocksize, dtype and offset {other:?}: only 256, float32 and a number are known"),
        }
    };
    Err(Error::invalid(problem))
}

const DTYPES: [(&str, DType); 3] = [("float32", DType::F32), ("bfloat16", DType::BF16), ("float16", DType::F16)];

fn parse_dtype(name: &str) -> Option<DType> {
    DTYPES.iter().find(|entry| entry.0 == name).map(|entry| entry.1)
}

fn dtype_name(dtype: DType) -> Result<&'static str> {
    let known = DTYPES.iter().find(|entry| entry.1 == dtype).map(|entry| entry.0);
    known.ok_or_else(|| Error::dtype("bnb", format!("a 4-bit matrix of {dtype}")))
}
