//! Text from files, made fit for a terminal.

/// `text` cut to `most` characters (then `…`), with `?` in place of every character that a terminal
/// acts on instead of showing it: controls (escape sequences, newlines, tabs, C1), and the marks that
/// change the direction of text or are invisible, with which a file could forge a line of ours.
pub fn printable(text: &str, most: usize) -> String {
    let mut short: String =
        text.chars().take(most).map(|c| if acts(c) { '?' } else { c }).collect();
    if text.chars().nth(most).is_some() {
        short.push('…');
    }
    short
}

fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}')
        || matches!(c, '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn what_a_terminal_acts_on_is_replaced() {
        assert_eq!(printable("a\u{1b}[2J\u{9b}\nPASS\r\t\u{202e}b\u{7f}", 99), "a?[2J??PASS???b?");
        assert_eq!(printable("naïve ⟨ü⟩ 你好", 99), "naïve ⟨ü⟩ 你好");
    }

    #[test]
    fn long_text_is_cut_at_a_character() {
        assert_eq!(printable(&"é".repeat(5), 4), "éééé…");
        assert_eq!(printable("éééé", 4), "éééé");
    }
}
