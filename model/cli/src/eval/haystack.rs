//! Long texts with a planted sentence.

use crate::load::Prepared;
use dsa_kernels::random::Rng;
use dsa_model::chat::Conversation;
use dsa_model::eval::Needle;

const PLACES: [&str; 8] =
    ["Arden", "Brome", "Calder", "Dunmore", "Elsby", "Farrow", "Garth", "Holm"];
const THINGS: [&str; 8] =
    ["barrels", "bricks", "candles", "coats", "ladders", "lamps", "ropes", "wheels"];
const BOXES: [&str; 4] = ["green", "grey", "red", "white"];

/// The sentences of a long text, each with its tokens.
pub(super) struct Haystack {
    sentences: Vec<(String, usize)>,
}

/// What is planted and asked for.
pub(super) struct Secret {
    sentence: String,
    question: String,
    /// What the answer must have.
    pub number: String,
}

impl Secret {
    /// One of many.
    pub fn draw(rng: &mut Rng) -> Self {
        let (colour, number) = (rng.choose(&BOXES), 1_000_000 + rng.below(9_000_000));
        Self {
            sentence: format!("The number that is kept in the {colour} box is {number}. "),
            question: format!(
                "\n\nWhich number is kept in the {colour} box? Answer with the number alone."
            ),
            number: number.to_string(),
        }
    }
}

impl Haystack {
    /// The sentences of `text`, or made-up ones, over and over until they have `tokens` tokens.
    pub fn new(
        prepared: &Prepared,
        text: Option<&str>,
        tokens: usize,
        rng: &mut Rng,
    ) -> anyhow::Result<Self> {
        let given: Vec<&str> =
            text.map(|text| text.split_inclusive(". ").collect()).unwrap_or_default();
        let (mut sentences, mut all) = (Vec::new(), 0);
        while all < tokens {
            let sentence = match given.get(sentences.len() % given.len().max(1)) {
                Some(sentence) => sentence.to_string(),
                None => made_up(rng),
            };
            let n = ids(prepared, &sentence)?.len().max(1);
            all += n;
            sentences.push((sentence, n));
        }
        Ok(Self { sentences })
    }

    /// A prompt of about `context` tokens, and no more, with `secret` at `depth`, 0 to 1.
    pub fn plant(
        &self,
        prepared: &Prepared,
        secret: &Secret,
        context: usize,
        depth: f64,
        allow_special: bool,
    ) -> anyhow::Result<Needle> {
        let prompt = |content: &str| -> anyhow::Result<Vec<u32>> {
            let asked = Conversation::asking(content);
            let prompt = prepared.chat.prompt(&asked, &prepared.tokenizer, allow_special)?;
            Ok(prepared.tokenizer.encode(&prompt)?)
        };
        let Secret { sentence, question, .. } = secret;
        let least = prompt(&format!("{sentence}{question}"))?.len();
        anyhow::ensure!(
            least <= context,
            "{context} tokens of context: the question alone has {least}"
        );
        let mut room = context - least;
        loop {
            let (mut n, mut taken) = (0, 0);
            while let Some((_, tokens)) =
                self.sentences.get(n).filter(|(_, more)| taken + more <= room)
            {
                (n, taken) = (n + 1, taken + tokens);
            }
            let (mut cut, mut before) = (0, 0);
            while cut < n && (before as f64) < depth * taken as f64 {
                (cut, before) = (cut + 1, before + self.sentences[cut].1);
            }
            let text =
                |of: &[(String, usize)]| of.iter().map(|(text, _)| &text[..]).collect::<String>();
            let (head, tail) = (text(&self.sentences[..cut]), text(&self.sentences[cut..n]));
            let with = prompt(&format!("{head}{sentence}{tail}{question}"))?;
            if with.len() > context && room > 0 {
                // Sentences may have more tokens together than apart.
                room -= (with.len() - context).min(room);
                continue;
            }
            let without = prompt(&format!("{head}{tail}{question}"))?;
            let same =
                |a: &mut dyn Iterator<Item = (&u32, &u32)>| a.take_while(|(a, b)| a == b).count();
            let begin = same(&mut with.iter().zip(&without));
            let end = same(&mut with.iter().rev().zip(without.iter().rev()));
            // Where the sentence begins as what follows it, or ends as what is before it, it has as many tokens all the same.
            let long = with.len().saturating_sub(without.len()).max(1);
            let start = begin.min(with.len() - long);
            let stop = (with.len() - end).clamp(start + 1, with.len()).max(start + long);
            return Ok(Needle { planted: start..stop, prompt: with });
        }
    }
}

/// The tokens of a text alone.
fn ids(prepared: &Prepared, text: &str) -> anyhow::Result<Vec<u32>> {
    let mut prompt = dsa_model::chat::Prompt::new();
    prompt.push(text);
    Ok(prepared.tokenizer.encode(&prompt)?)
}

fn made_up(rng: &mut Rng) -> String {
    let (place, thing) = (rng.choose(&PLACES), rng.choose(&THINGS));
    format!(
        "On day {} of that year {} {thing} came to {place}. ",
        1 + rng.below(365),
        2 + rng.below(98)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::{ChatArgs, ModelArgs};
    use clap::Parser;
    use dsa_model::make_tiny::{Like, MakeTiny};

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        model: ModelArgs,
        #[command(flatten)]
        chat: ChatArgs,
    }

    #[test]
    fn a_sentence_is_planted_whole_at_its_depth_in_a_prompt_that_is_no_longer_than_asked() {
        let folder = tempfile::tempdir().unwrap();
        let made = folder.path().join("made");
        let make = MakeTiny { layers: Some(2), ..MakeTiny::like(Like::DeepseekV32) };
        make.checked().unwrap().write(&crate::open(Some("cpu")).unwrap(), &made).unwrap();
        let flags = Flags::parse_from(["x", "--ckpt", made.to_str().unwrap()]);
        let prepared = Prepared::new(&flags.model, &flags.chat).unwrap();
        let mut rng = Rng::new(3);
        for text in [None, Some("One. Two is longer than one. The third sentence, then. ")] {
            let haystack = Haystack::new(&prepared, text, 600, &mut rng).unwrap();
            let mut places = vec![];
            for depth in [0.0, 0.5, 1.0] {
                let secret = Secret::draw(&mut rng);
                let needle = haystack.plant(&prepared, &secret, 600, depth, false).unwrap();
                let n = needle.prompt.len();
                assert!((500..=600).contains(&n), "{n}");
                let planted = prepared.tokenizer.decode(&needle.prompt[needle.planted.clone()]);
                // Two sentences that begin alike are told apart only behind that.
                let turned: String = [&planted[..], &planted[..]].concat();
                assert!(turned.contains(secret.sentence.trim_end()), "{planted:?}");
                assert_eq!(planted.len(), secret.sentence.len());
                places.push(needle.planted.start as f64 / n as f64);
            }
            assert!(
                places[0] < 0.1 && (0.3..0.6).contains(&places[1]) && places[2] > 0.7,
                "{places:?}"
            );
            let error =
                haystack.plant(&prepared, &Secret::draw(&mut rng), 50, 0.5, false).unwrap_err();
            assert!(error.to_string().starts_with("50 tokens of context: the question alone has"));
        }
    }
}
