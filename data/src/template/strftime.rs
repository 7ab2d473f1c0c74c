//! The part of C's `strftime` that templates use, in the C locale.

use std::fmt::Write;

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAY_SECONDS: i64 = 86_400;

/// Formats a count of seconds since 1970; an unknown directive is an error that names it.
pub(super) fn strftime(format: &str, unix_seconds: i64) -> Result<String, String> {
    let days = unix_seconds.div_euclid(DAY_SECONDS);
    let seconds = unix_seconds.rem_euclid(DAY_SECONDS);
    let (year, month, day) = civil_from_days(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    let hour12 = if hour % 12 == 0 { 12 } else { hour % 12 };
    let weekday = DAYS[(days + 4).rem_euclid(7) as usize];
    let month_name = MONTHS[month as usize - 1];
    let day_of_year = days - days_from_civil(year, 1, 1) + 1;

    let mut output = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            output.push(c);
            continue;
        }
        let mut directive = chars.next();
        let unpadded = directive == Some('-');
        if unpadded {
            directive = chars.next();
        }
        let (number, width) = match directive {
            Some('Y') => (year, 4),
            Some('y') => (year.rem_euclid(100), 2),
            Some('m') => (month, 2),
            Some('d') => (day, 2),
            Some('H') => (hour, 2),
            Some('I') => (hour12, 2),
            Some('M') => (minute, 2),
            Some('S') => (second, 2),
            Some('j') => (day_of_year, 3),
            other => {
                let text = match other {
                    Some('A') => weekday,
                    Some('a') => &weekday[..3],
                    Some('B') => month_name,
                    Some('b' | 'h') => &month_name[..3],
                    Some('p') => ["AM", "PM"][usize::from(hour >= 12)],
                    Some('%') => "%",
                    Some(c) => return Err(format!("strftime_now: unknown directive %{c}")),
                    None => return Err("strftime_now: the format ends with %".into()),
                };
                output.push_str(text);
                continue;
            }
        };
        let width = if unpadded { 0 } else { width };
        write!(output, "{number:0width$}").expect("a String takes every write");
    }
    Ok(output)
}

/// Year, month and day of a count of days since 1970 (Hinnant, "chrono-compatible low-level date
/// algorithms").
#[must_use]
pub fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// The inverse of [`civil_from_days`].
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let shifted_month = (month + 9) % 12;
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values printed by Python's `datetime`.
    #[test]
    fn formats_as_python() {
        let cases = [
            (0, "%Y-%m-%d %H:%M:%S %A %j", "1970-01-01 00:00:00 Thursday 001"),
            (1_709_210_096, "%d %b %Y", "29 Feb 2024"),
            (1_735_689_599, "%-d %B %y, %I:%M %p %j", "31 December 24, 11:59 PM 366"),
            (-1, "%Y-%m-%d %a %%", "1969-12-31 Wed %"),
        ];
        for (time, format, expected) in cases {
            assert_eq!(strftime(format, time).unwrap(), expected);
        }
        assert!(strftime("%Q", 0).unwrap_err().contains("%Q"));
        assert!(strftime("50%", 0).is_err());
    }

    #[test]
    fn the_calendar_is_its_own_inverse() {
        for days in (-800_000..800_000).step_by(97) {
            let (year, month, day) = civil_from_days(days);
            assert_eq!(days_from_civil(year, month, day), days);
        }
    }
}
