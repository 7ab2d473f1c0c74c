//! What kernels ask of the host: `vprintf` and `__assertfail`.

use super::format::{Argument, Directive, Format};
use super::machine::{Machine, Step, Stop, stop};
use super::warp::Warp;
use crate::error::FaultKind::Assert;
use crate::memory::{bits, tag};
use crate::program::Space;

/// The most text of one cluster of blocks; the buffer of a GPU holds as much for a whole launch.
const MOST_TEXT: usize = 1 << 20;
/// What stands in place of the text beyond that.
const DROPPED: &str = "\n(more was printed and is not kept)\n";

impl Machine<'_> {
    /// `vprintf(format, arguments)`: two generic pointers in the frame. Its result is the number of arguments.
    pub(super) fn printf(
        &mut self,
        warp: &mut Warp,
        (format, arguments, result): (u32, u32, Option<u32>),
        active: u32,
    ) -> Step {
        for lane in bits(active) {
            let parameter = |at: u32| self.peek(warp, lane, tag(Space::Local) | u64::from(at), 8);
            let (format, mut at) = (parameter(format)?, parameter(arguments)?);
            let format = self.text(warp, lane, format)?;
            let mut text = String::new();
            let mut count = 0;
            for piece in Format::new(&format) {
                let directive = match piece {
                    Ok(literal) => {
                        text.push_str(literal);
                        continue;
                    }
                    Err(directive) => directive,
                };
                let mut next = |bytes: u32| {
                    let last = u64::from(bytes) - 1;
                    at = at.wrapping_add(last) & !last;
                    let value = self.peek(warp, lane, at, bytes);
                    at = at.wrapping_add(bytes.into());
                    count += 1;
                    value
                };
                let width = if directive.star_width { Some(next(4)? as i32) } else { None };
                let precision = if directive.star_precision { Some(next(4)? as i32) } else { None };
                let argument = self.argument(warp, lane, &directive, &mut next)?;
                text += &directive.with_stars(width, precision).write(argument);
            }
            if self.printed.len() + text.len() <= MOST_TEXT {
                self.printed += &text;
            } else if !self.printed.ends_with(DROPPED) {
                self.printed += DROPPED;
            }
            if let Some(result) = result {
                warp.frame.store(lane, result, 4, count);
                warp.frame.mark(lane, result, 4);
            }
        }
        Ok(())
    }

    fn argument(
        &self,
        warp: &Warp,
        lane: u32,
        directive: &Directive,
        next: &mut impl FnMut(u32) -> Step<u64>,
    ) -> Step<Argument> {
        Ok(match directive.conversion {
            's' => match next(8)? {
                0 => Argument::Text("(null)".into()),
                text => Argument::Text(self.text(warp, lane, text)?),
            },
            'e' | 'f' | 'g' | 'a' | 'E' | 'F' | 'G' | 'A' => Argument::Float(f64::from_bits(next(8)?)),
            'p' => Argument::Bits(next(8)?),
            _ => Argument::Bits(next(directive.bytes())?),
        })
    }

    /// `__assertfail(message, file, line, function, char_size)`.
    pub(super) fn assert_fail(&self, warp: &Warp, parameters: [u32; 4], lane: u32) -> Box<Stop> {
        let [message, file, line, function] = parameters;
        let parameter = |at: u32, bytes| self.peek(warp, lane, tag(Space::Local) | u64::from(at), bytes);
        let text = |at: u32| parameter(at, 8).and_then(|address| self.text(warp, lane, address));
        let words =
            || Ok(format!("`{}` at {}:{} in {}", text(message)?, text(file)?, parameter(line, 4)?, text(function)?));
        match words() {
            Ok(what) => stop(Assert, lane, what),
            Err(stop) => stop,
        }
    }
}
