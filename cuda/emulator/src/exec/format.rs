//! The format strings of C's printf, with the sizes that CUDA gives its types.

/// A format string in pieces: text as it is (`Ok`), or a directive (`Err`).
pub(super) struct Format<'a> {
    rest: &'a str,
}

/// `%[flags][width][.precision][length]conversion`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Directive {
    left: bool,
    plus: bool,
    space: bool,
    alternate: bool,
    zero: bool,
    width: usize,
    precision: Option<usize>,
    /// `*` in place of the width, of the precision: an int argument each.
    pub(super) star_width: bool,
    pub(super) star_precision: bool,
    /// Bytes that the length asks for: hh 1, h 2, none 4, l ll z j t 8.
    length: u32,
    pub(super) conversion: char,
}

/// The value of a directive.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Argument {
    Bits(u64),
    Float(f64),
    Text(String),
}

impl<'a> Format<'a> {
    pub(super) fn new(format: &'a str) -> Self {
        Self { rest: format }
    }
}

impl<'a> Iterator for Format<'a> {
    type Item = Result<&'a str, Directive>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.rest;
        if rest.is_empty() {
            return None;
        }
        if let Some(directive) = rest.strip_prefix('%') {
            if let Some(behind) = directive.strip_prefix('%') {
                self.rest = behind;
                return Some(Ok("%"));
            }
            if let Some((directive, behind)) = Directive::parse(directive) {
                self.rest = behind;
                return Some(Err(directive));
            }
        }
        // Text up to the next percent sign; one that begins no directive is text itself.
        let end = rest[1..].find('%').map_or(rest.len(), |at| at + 1);
        let (text, behind) = if rest.is_char_boundary(1) { rest.split_at(end) } else { split_text(rest) };
        self.rest = behind;
        Some(Ok(text))
    }
}

/// The text before the next percent sign, for text that begins with a character of several bytes.
fn split_text(rest: &str) -> (&str, &str) {
    rest.split_at(rest.find('%').unwrap_or(rest.len()))
}

impl Directive {
    /// Reads what stands behind a percent sign, and what is left.
    fn parse(text: &str) -> Option<(Self, &str)> {
        let mut directive = Self { length: 4, ..Self::default() };
        let mut rest = text;
        let take = |rest: &mut &str, flag: char| match rest.strip_prefix(flag) {
            Some(behind) => {
                *rest = behind;
                true
            }
            None => false,
        };
        loop {
            if take(&mut rest, '-') {
                directive.left = true;
            } else if take(&mut rest, '+') {
                directive.plus = true;
            } else if take(&mut rest, ' ') {
                directive.space = true;
            } else if take(&mut rest, '#') {
                directive.alternate = true;
            } else if take(&mut rest, '0') {
                directive.zero = true;
            } else {
                break;
            }
        }
        directive.star_width = take(&mut rest, '*');
        directive.width = number(&mut rest).unwrap_or(0);
        if take(&mut rest, '.') {
            directive.star_precision = take(&mut rest, '*');
            directive.precision = Some(number(&mut rest).unwrap_or(0));
        }
        while let Some(length) = rest.chars().next().filter(|length| "hlzjtL".contains(*length)) {
            directive.length = match (length, directive.length) {
                ('h', 2) => 1,
                ('h', _) => 2,
                _ => 8,
            };
            rest = &rest[1..];
        }
        directive.conversion = rest.chars().next().filter(|conversion| "diuxXocspfFeEgGaA".contains(*conversion))?;
        Some((directive, &rest[1..]))
    }

    /// The bytes of its integer argument: C passes nothing smaller than an int.
    pub(super) fn bytes(&self) -> u32 {
        if self.conversion == 'c' { 4 } else { self.length.max(4) }
    }

    /// With the arguments that stand for `*`: a negative width is the flag `-`, a negative precision is none.
    pub(super) fn with_stars(mut self, width: Option<i32>, precision: Option<i32>) -> Self {
        if let Some(width) = width {
            self.left |= width < 0;
            self.width = width.unsigned_abs() as usize;
        }
        if let Some(precision) = precision {
            self.precision = usize::try_from(precision).ok();
        }
        // More than a screen of padding is nobody's wish, and an argument must not ask for gigabytes.
        self.width = self.width.min(4096);
        self.precision = self.precision.map(|precision| precision.min(4096));
        self
    }

    /// The argument as C would write it.
    pub(super) fn write(&self, argument: Argument) -> String {
        match argument {
            Argument::Text(text) => {
                self.pad("", &text.chars().take(self.precision.unwrap_or(usize::MAX)).collect::<String>(), false)
            }
            Argument::Float(value) => self.float(value),
            Argument::Bits(bits) => match self.conversion {
                'c' => self.pad("", &char::from(bits as u8).to_string(), false),
                'p' => self.pad("0x", &format!("{bits:x}"), false),
                _ => self.integer(bits),
            },
        }
    }

    fn integer(&self, bits: u64) -> String {
        let unused = 64 - self.length * 8;
        let signed = ((bits << unused) as i64) >> unused;
        let unsigned = bits << unused >> unused;
        let (sign, magnitude) = match self.conversion {
            'd' | 'i' => (self.sign(signed < 0), signed.unsigned_abs()),
            _ => ("", unsigned),
        };
        let mut digits = match self.conversion {
            'x' => format!("{magnitude:x}"),
            'X' => format!("{magnitude:X}"),
            'o' => format!("{magnitude:o}"),
            _ => magnitude.to_string(),
        };
        if magnitude == 0 && self.precision == Some(0) {
            digits.clear();
        }
        let least = self.precision.unwrap_or(0);
        digits.insert_str(0, &"0".repeat(least.saturating_sub(digits.len())));
        let prefix = match self.conversion {
            'x' if self.alternate && magnitude != 0 => "0x",
            'X' if self.alternate && magnitude != 0 => "0X",
            'o' if self.alternate && !digits.starts_with('0') => "0",
            _ => sign,
        };
        // A precision turns the flag `0` off.
        self.pad(prefix, &digits, self.zero && self.precision.is_none())
    }

    fn float(&self, value: f64) -> String {
        let sign = self.sign(value.is_sign_negative());
        let upper = self.conversion.is_ascii_uppercase();
        let magnitude = value.abs();
        let (prefix, digits, zero) = if value.is_nan() {
            (sign.to_string(), "nan".to_string(), false)
        } else if value.is_infinite() {
            (sign.to_string(), "inf".to_string(), false)
        } else {
            let precision = self.precision.unwrap_or(6);
            match self.conversion.to_ascii_lowercase() {
                'f' => (sign.into(), self.point(format!("{magnitude:.precision$}")), self.zero),
                'e' => (sign.into(), self.exponent(magnitude, precision), self.zero),
                'g' => (sign.into(), self.general(magnitude, precision.max(1)), self.zero),
                _ => (format!("{sign}0x"), hexadecimal(magnitude, self.precision, self.alternate), self.zero),
            }
        };
        let text = self.pad(&prefix, &digits, zero);
        if upper { text.to_uppercase() } else { text }
    }

    /// `1.5e+02`
    fn exponent(&self, magnitude: f64, precision: usize) -> String {
        let text = format!("{magnitude:.precision$e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let exponent: i32 = exponent.parse().unwrap_or(0);
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{}e{sign}{:02}", self.point(digits.to_string()), exponent.abs())
    }

    /// `%g`: the shorter of `%e` and `%f` for `precision` digits, without trailing zeros unless `#` asks for them.
    fn general(&self, magnitude: f64, precision: usize) -> String {
        let rounded = format!("{magnitude:.*e}", precision - 1);
        let exponent: i32 = rounded.split_once('e').and_then(|(_, exponent)| exponent.parse().ok()).unwrap_or(0);
        let trimmed = |digits: &str| match digits.contains('.') && !self.alternate {
            true => digits.trim_end_matches('0').trim_end_matches('.').to_string(),
            false => digits.to_string(),
        };
        if exponent < -4 || exponent >= precision as i32 {
            let text = self.exponent(magnitude, precision - 1);
            let (digits, exponent) = text.split_once('e').unwrap_or((&text, "+00"));
            return format!("{}e{exponent}", trimmed(digits));
        }
        let decimals = (precision as i32 - 1 - exponent) as usize;
        trimmed(&self.point(format!("{magnitude:.decimals$}")))
    }

    /// `#` keeps the point of a number without decimals.
    fn point(&self, digits: String) -> String {
        if self.alternate && !digits.contains('.') { digits + "." } else { digits }
    }

    fn sign(&self, negative: bool) -> &'static str {
        match (negative, self.plus, self.space) {
            (true, ..) => "-",
            (_, true, _) => "+",
            (_, _, true) => " ",
            _ => "",
        }
    }

    fn pad(&self, prefix: &str, digits: &str, zero: bool) -> String {
        let missing = self.width.saturating_sub(prefix.chars().count() + digits.chars().count());
        match (self.left, zero) {
            (true, _) => format!("{prefix}{digits}{}", " ".repeat(missing)),
            (_, true) => format!("{prefix}{}{digits}", "0".repeat(missing)),
            _ => format!("{}{prefix}{digits}", " ".repeat(missing)),
        }
    }
}

/// `1.8p+3` for 12: what stands behind `0x`.
fn hexadecimal(magnitude: f64, precision: Option<usize>, point: bool) -> String {
    let bits = magnitude.to_bits();
    let mut exponent = (bits >> 52) as i32 - 1023;
    let mut mantissa = bits & ((1 << 52) - 1);
    let mut whole = 1;
    if bits >> 52 == 0 {
        whole = 0;
        exponent = if mantissa == 0 { 0 } else { -1022 };
    }
    if let Some(precision) = precision.filter(|&precision| precision < 13) {
        // Round to nearest, ties to even, at that many digits of 4 bits.
        let dropped = 52 - 4 * precision as u32;
        let value = whole << 52 | mantissa;
        let half = 1u64 << (dropped - 1);
        let odd = value >> dropped & 1;
        let rounded = (value + half - 1 + odd) >> dropped << dropped;
        whole = rounded >> 52;
        mantissa = rounded & ((1 << 52) - 1);
    }
    let mut digits = format!("{mantissa:013x}");
    match precision {
        Some(precision) if precision <= 13 => digits.truncate(precision),
        Some(precision) => digits.push_str(&"0".repeat(precision - 13)),
        None => digits.truncate(digits.trim_end_matches('0').len()),
    }
    let dot = if digits.is_empty() && !point { "" } else { "." };
    format!("{whole}{dot}{digits}p{exponent:+}")
}

fn number(rest: &mut &str) -> Option<usize> {
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (digits, behind) = rest.split_at(end);
    *rest = behind;
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(format: &str, argument: Argument) -> String {
        Format::new(format)
            .map(|piece| {
                piece.map_or_else(|directive| directive.with_stars(None, None).write(argument.clone()), String::from)
            })
            .collect()
    }

    #[test]
    fn integers_as_c_writes_them() {
        let bits = |format, value: i64| write(format, Argument::Bits(value as u64));
        assert_eq!(bits("%d|%5d|%-5d|%05d|%+d", -42), "-42|  -42|-42  |-0042|-42");
        assert_eq!(bits("% d %+i", 7), " 7 +7");
        assert_eq!(bits("%u %x %X %#x %o %#o", 255), "255 ff FF 0xff 377 0377");
        assert_eq!(bits("%u", -1), "4294967295");
        assert_eq!(bits("%lu %lld", -1), "18446744073709551615 -1");
        assert_eq!(bits("%hd %hhu", 0x1_ffff), "-1 255");
        assert_eq!(bits("%.3d|%6.3d|%06.3d", 7), "007|   007|   007");
        assert_eq!(bits("%.0d|", 0), "|");
        assert_eq!(bits("%c%%", 65), "A%");
        assert_eq!(bits("%p", 0x7f00), "0x7f00");
    }

    #[test]
    fn floats_as_c_writes_them() {
        let float = |format, value| write(format, Argument::Float(value));
        assert_eq!(float("%f %.2f %8.3f|%-8.1f|%08.2f %+.0f", -1.5), "-1.500000 -1.50   -1.500|-1.5    |-0001.50 -2");
        assert_eq!(float("%e %.0e %.3E", 12345.678), "1.234568e+04 1e+04 1.235E+04");
        assert_eq!(float("%g %g", 0.0001), "0.0001 0.0001");
        assert_eq!(float("%g", 0.00001), "1e-05");
        assert_eq!(float("%g %.3g %#g", 100000.0), "100000 1e+05 100000.");
        assert_eq!(float("%g", 1e6), "1e+06");
        assert_eq!(float("%g", 9999995.0), "1e+07");
        assert_eq!(float("%f %5.1f %F", f64::NAN), "nan   nan NAN");
        assert_eq!(float("%g %05f", f64::NEG_INFINITY), "-inf  -inf");
        assert_eq!(float("%a %A %.1a", 12.0), "0x1.8p+3 0X1.8P+3 0x1.8p+3");
        assert_eq!(float("%a %.0a", 0.0), "0x0p+0 0x0p+0");
        assert_eq!(float("%.2a", 1.0 + 1.0 / 512.0), "0x1.00p+0");
        assert_eq!(float("%.0a", 1.9), "0x2p+0");
    }

    #[test]
    fn text_and_odd_directives() {
        let text = |format| write(format, Argument::Text("kinglet".into()));
        assert_eq!(text("[%s] [%10s] [%-10s] [%.4s]"), "[kinglet] [   kinglet] [kinglet   ] [king]");
        assert_eq!(text("100% é%s % y %"), "100% ékinglet % y %");
    }
}
