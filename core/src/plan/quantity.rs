//! Kubernetes quantities as whole numbers.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Thousandths of a unit. `None` if the text is no quantity or does not fit.
fn millis(text: &str) -> Option<i128> {
    let split = text.find(|character: char| !(character.is_ascii_digit() || matches!(character, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let factor: i128 = match suffix {
        "m" => 1,
        "" => 1_000,
        "k" => 1_000_000,
        "M" => 1_000_000_000,
        "G" => 1_000_000_000_000,
        "T" => 1_000_000_000_000_000,
        "Ki" => 1_000 << 10,
        "Mi" => 1_000 << 20,
        "Gi" => 1_000 << 30,
        "Ti" => 1_000 << 40,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut value = whole.checked_mul(factor)?;
    let mut unit = factor;
    for digit in fraction.chars() {
        unit /= 10;
        value += i128::from(digit.to_digit(10)?) * unit;
    }
    Some(value)
}

/// Whole units (bytes), rounded down.
pub fn units(quantity: &Quantity) -> Option<i64> {
    i64::try_from(millis(&quantity.0)? / 1_000).ok()
}

/// Thousandths (of a core).
pub fn thousandths(quantity: &Quantity) -> Option<i64> {
    i64::try_from(millis(&quantity.0)?).ok()
}

/// Bytes, in the largest binary unit that leaves no rest.
pub fn bytes(count: i64) -> Quantity {
    let (mut number, mut unit) = (count, "");
    for larger in ["Ki", "Mi", "Gi", "Ti"] {
        if number == 0 || number % 1024 != 0 {
            break;
        }
        number /= 1024;
        unit = larger;
    }
    Quantity(format!("{number}{unit}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("2Gi", Some(2 << 30))]
    #[case("1.5Gi", Some(3 << 29))]
    #[case("500M", Some(500_000_000))]
    #[case("1024", Some(1024))]
    #[case("100m", Some(0))]
    #[case("lots", None)]
    #[case("1Zi", None)]
    fn units_are_read(#[case] text: &str, #[case] expected: Option<i64>) {
        assert_eq!(units(&Quantity(text.into())), expected);
    }

    #[rstest]
    #[case("250m", Some(250))]
    #[case("1.5", Some(1500))]
    #[case("2", Some(2000))]
    fn thousandths_are_read(#[case] text: &str, #[case] expected: Option<i64>) {
        assert_eq!(thousandths(&Quantity(text.into())), expected);
    }

    #[rstest]
    #[case(2 << 30, "2Gi")]
    #[case(3 << 29, "1536Mi")]
    #[case(1000, "1000")]
    fn bytes_are_written(#[case] count: i64, #[case] expected: &str) {
        assert_eq!(bytes(count).0, expected);
    }
}
