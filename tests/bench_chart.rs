//! Checks that no text of the benchmark chart in `docs/bench` is cut off.
#![allow(clippy::unwrap_used, reason = "a test that can't read it has failed")]

/// Width of a character, in pixels: 0.6 of the font size, as in DejaVu Sans.
const CHARACTER: f64 = 0.6 * 13.5;

#[test]
fn no_label_is_cut_off() {
    let chart = std::fs::read_to_string("docs/bench/bench.svg").unwrap();
    let number = |text: &str, name: &str| -> Option<f64> {
        let value = text.split_once(&format!("{name}=\""))?.1;
        value.split('"').next()?.parse().ok()
    };
    let page = chart.split("class=\"page\"").nth(1).unwrap();
    let width = number(page, "width").unwrap();
    let mut labels = 0;
    for text in chart.split("<text").skip(1) {
        let (attributes, rest) = text.split_once('>').unwrap();
        let (label, _) = rest.split_once("</text>").unwrap();
        let length = CHARACTER * f64::from(u16::try_from(label.chars().count()).unwrap());
        let x = number(attributes, " x").unwrap();
        let (from, to) = match attributes {
            _ if attributes.contains("end") => (x - length, x),
            _ if attributes.contains("mid") => (x - length / 2.0, x + length / 2.0),
            _ => (x, x + length),
        };
        assert!(
            from >= 0.0 && to <= width,
            "{label}: {from} to {to} of {width}"
        );
        labels += 1;
    }
    assert!(labels > 20, "{labels}");
}
