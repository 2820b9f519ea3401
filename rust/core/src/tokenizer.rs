//! The facade: text to ids and back.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::batch::{EncodeOptions, Pause, room_for_ids};
use crate::boundaries::Boundaries;
use crate::cache::DEFAULT_LIMIT;
use crate::encode::{Counter, Encoder, Scratch, Sink};
use crate::normalize::{After, Normalizer, SPACE, Spaces};
use crate::pool::Pool;
use crate::pretokenize::Pretokenizer;
use crate::sentencepiece::SentencePieceModel;
use crate::special::{AddedToken, AddedTokens, Part, SpecialSet};
use crate::vocab::Vocab;
use crate::{Error, Result};

/// For each token, the characters its bytes fall into: the first, and the one after the last.
pub type Offsets = Vec<(usize, usize)>;

/// What published vocabularies call the token that begins a text, in the order they are looked for.
const BOS_NAMES: &[&str] = &["<|begin_of_text|>", "<s>", "<bos>", "<|startoftext|>"];
const EOS_NAMES: &[&str] = &["<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>"];

/// A byte-level BPE tokenizer: a vocabulary, the pattern that splits text, and special tokens.
///
/// It is immutable and can be used from many threads at once.
///
/// ```
/// use bpe_llama::{AddedToken, Pretokenizer, SpecialSet, Tokenizer, Vocab};
///
/// let mut ranks: Vec<(Vec<u8>, u32)> = (0..=255).map(|byte| (vec![byte], u32::from(byte))).collect();
/// ranks.push((b"he".to_vec(), 256));
/// let end = AddedToken::special("<|end|>", 257);
/// let tokenizer = Tokenizer::new(Vocab::from_ranks(ranks)?, Pretokenizer::new("r50k")?, vec![end], false)?;
/// assert_eq!(tokenizer.encode_ordinary("hey")?, [256, u32::from(b'y')]);
/// assert_eq!(tokenizer.encode("he<|end|>", SpecialSet::All)?, [256, 257]);
/// assert_eq!(tokenizer.decode_bytes(&[256, 257])?, b"he<|end|>");
/// # Ok::<(), bpe_llama::Error>(())
/// ```
pub struct Tokenizer {
    vocab: Vocab,
    pretokenizer: Pretokenizer,
    added: AddedTokens,
    normalizer: Normalizer,
    bos: Option<u32>,
    eos: Option<u32>,
    boundaries: Boundaries,
    /// Warm scratch memory, one for each thread that was ever in here at the same time as others.
    idle: Pool<Scratch>,
    cache_limit: AtomicUsize,
    /// What encodes and decodes instead of the vocabulary, where byte-level merging cannot.
    sentencepiece: Option<Arc<SentencePieceModel>>,
    /// Whether bytes that are no UTF-8, and spaces that come first, are decoded as SentencePiece does.
    decodes_as_sentencepiece: bool,
}

impl Tokenizer {
    /// Returns the tokenizer made of these parts.
    ///
    /// With `nfc`, text is brought to Unicode's normal form C first, as Qwen's `tokenizer.json` asks.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if an added token is empty or given twice, or takes the id of an ordinary token that
    /// has other bytes.
    pub fn new(vocab: Vocab, pretokenizer: Pretokenizer, added: Vec<AddedToken>, nfc: bool) -> Result<Self> {
        let added = AddedTokens::new(added)?;
        for token in added.tokens() {
            if vocab.id_to_bytes(token.id).is_some_and(|bytes| bytes != token.content.as_bytes()) {
                return Err(Error::InvalidArgument(format!(
                    "special token {:?} has id {}, which an ordinary token has already",
                    token.content, token.id
                )));
            }
        }
        let named = |names: &[&str]| names.iter().find_map(|name| Some(added.by_content(name)?.id));
        let (bos, eos) = (named(BOS_NAMES), named(EOS_NAMES));
        let (boundaries, idle) = (Boundaries::new(&vocab), Pool::new());
        let cache_limit = AtomicUsize::new(DEFAULT_LIMIT);
        let normalizer = if nfc { Normalizer::Nfc } else { Normalizer::None };
        Ok(Self {
            vocab,
            pretokenizer,
            added,
            normalizer,
            bos,
            eos,
            boundaries,
            idle,
            cache_limit,
            sentencepiece: None,
            decodes_as_sentencepiece: false,
        })
    }

    /// Returns the tokenizer that encodes and decodes by this model. It keeps vocabulary and added tokens for look-ups.
    #[must_use]
    pub(crate) fn with_sentencepiece(mut self, model: SentencePieceModel) -> Self {
        self.sentencepiece = Some(Arc::new(model));
        self.decoding_as_sentencepiece()
    }

    /// Returns the tokenizer that decodes what is no UTF-8, and spaces that come first, as SentencePiece does.
    #[must_use]
    pub(crate) fn decoding_as_sentencepiece(mut self) -> Self {
        self.decodes_as_sentencepiece = true;
        self
    }

    /// Returns the model that this tokenizer encodes by, if byte-level merging cannot express it:
    /// [`Tokenizer::from_sentencepiece`] makes the same tokenizer of it.
    pub fn sentencepiece_model(&self) -> Option<&[u8]> {
        self.sentencepiece.as_deref().map(SentencePieceModel::source)
    }

    /// Returns the tokenizer that treats the spaces of a text as SentencePiece does, before it is split.
    #[must_use]
    pub fn with_spaces(mut self, spaces: Spaces) -> Self {
        self.normalizer = Normalizer::Spaces(spaces);
        self.added.decode_to_spaces();
        self
    }

    /// Returns the tokenizer with these ids as the beginning and the end of a text.
    ///
    /// Without this call they are the special tokens of a usual name, such as `<|begin_of_text|>` or `</s>`.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an id that no token has.
    pub fn with_bos_eos(mut self, bos: Option<u32>, eos: Option<u32>) -> Result<Self> {
        for id in bos.iter().chain(&eos) {
            self.id_to_bytes(*id)?;
        }
        (self.bos, self.eos) = (bos, eos);
        Ok(self)
    }

    /// The id that begins a text, if there is one.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// The id that ends a text, if there is one.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// The ordinary tokens and their merges.
    pub fn vocab(&self) -> &Vocab {
        &self.vocab
    }

    /// What splits text into pieces.
    pub fn pretokenizer(&self) -> &Pretokenizer {
        &self.pretokenizer
    }

    /// Added tokens, special ones among them, in id order.
    pub fn added_tokens(&self) -> &[AddedToken] {
        self.added.tokens()
    }

    /// Whether text is brought to normal form C before it is split.
    pub fn normalizes(&self) -> bool {
        self.normalizer == Normalizer::Nfc
    }

    /// How spaces are treated, if as SentencePiece does.
    pub fn spaces(&self) -> Option<Spaces> {
        if let Normalizer::Spaces(spaces) = self.normalizer { Some(spaces) } else { None }
    }

    /// How many bytes of memory, about, each thread that encodes may use to remember pieces: 60 MiB unless set.
    pub fn cache_limit(&self) -> usize {
        self.cache_limit.load(Ordering::Relaxed)
    }

    /// Sets [`Tokenizer::cache_limit`], of which 256 KiB are used in any case; what is remembered so far is forgotten.
    pub fn set_cache_limit(&self, bytes: usize) {
        self.cache_limit.store(bytes, Ordering::Relaxed);
        self.idle.clear();
    }

    /// Returns the largest id plus one, special tokens included: the rows an embedding needs.
    pub fn vocab_size(&self) -> usize {
        let last_added = self.added.tokens().last().map_or(0, |token| token.id as usize + 1);
        last_added.max(self.vocab.id_bound() as usize)
    }

    /// Returns the ids of `text`, in which special tokens are ordinary text.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a byte has no token, or a custom pattern backtracks beyond its bound.
    ///
    /// # Cost
    /// Linear in the length of `text`, whatever it holds.
    pub fn encode_ordinary(&self, text: &str) -> Result<Vec<u32>> {
        self.encode(text, SpecialSet::None)
    }

    /// Returns the ids of `text`, in which the `allowed` special tokens stand for themselves.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_ordinary`], and if `allowed` names what is no special token.
    pub fn encode(&self, text: &str, allowed: SpecialSet<'_>) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        self.encode_into(text, EncodeOptions { allowed, ..EncodeOptions::default() }, &mut ids)?;
        Ok(ids)
    }

    /// Appends the ids of `text` to `ids`. On an error, `ids` may have grown.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`], and what `options.pause` returns.
    pub fn encode_into(&self, text: &str, options: EncodeOptions<'_>, ids: &mut Vec<u32>) -> Result<()> {
        if ids.capacity() == 0 {
            *ids = room_for_ids(text.len());
        }
        ids.extend(options.bos);
        self.with_scratch(options.pause, |encoder, scratch| self.run(text, options, encoder, scratch, ids))?;
        ids.extend(options.eos);
        Ok(())
    }

    /// Returns how many ids [`Tokenizer::encode_into`] would append, without making them.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_into`].
    pub fn count(&self, text: &str, options: EncodeOptions<'_>) -> Result<usize> {
        let mut counter = Counter::default();
        self.with_scratch(options.pause, |encoder, scratch| self.run(text, options, encoder, scratch, &mut counter))?;
        Ok(counter.0 + usize::from(options.bos.is_some()) + usize::from(options.eos.is_some()))
    }

    /// Returns the ids of any bytes.
    ///
    /// The longest valid UTF-8 start is encoded as text; the rest, with the last piece of that text, is one piece. So
    /// text gives the ids of [`Tokenizer::encode_ordinary`], and [`Tokenizer::decode_bytes`] gives the bytes back (but
    /// for `▁`, which to SentencePiece is a space).
    ///
    /// # Errors
    /// As [`Tokenizer::encode_ordinary`].
    ///
    /// # Source
    /// tiktoken treats bytes that are no UTF-8 the same way.
    pub fn encode_bytes(&self, bytes: &[u8]) -> Result<Vec<u32>> {
        let (text, tail) = match std::str::from_utf8(bytes) {
            Ok(text) => return self.encode_ordinary(text),
            Err(error) => {
                let (text, tail) = bytes.split_at(error.valid_up_to());
                (std::str::from_utf8(text).unwrap_or_default(), tail)
            }
        };
        if let Some(model) = &self.sentencepiece {
            let mut ids = Vec::new();
            model.encode(bytes, After::Nothing, Pause::default(), &mut ids)?;
            return Ok(ids);
        }
        if self.spaces().is_some() {
            // The byte that is no text becomes a token of its own, so nothing merges across it.
            let mut ids = self.encode_ordinary(text)?;
            self.with_scratch(Pause::default(), |encoder, scratch| encoder.bytes(tail, scratch, &mut ids))?;
            return Ok(ids);
        }
        let mut ids = self.encode_ordinary(text)?;
        let last = self.pretokenizer.split(text)?.last().map_or(0, |piece| piece.len());
        let mut unsettled = self.encode_ordinary(&text[text.len() - last..])?.len();
        // A piece of white space may take in the white space before it once more follows.
        let is_blank =
            |id: u32| self.vocab.id_to_bytes(id).is_some_and(|bytes| bytes.iter().all(|byte| b" \n\t".contains(byte)));
        if unsettled > 0 && is_blank(ids[ids.len() - unsettled]) {
            unsettled += ids[..ids.len() - unsettled].iter().rev().take_while(|&&id| is_blank(id)).count();
        }
        let mut joined = self.decode_bytes(&ids[ids.len() - unsettled..])?;
        joined.extend_from_slice(tail);
        ids.truncate(ids.len() - unsettled);
        self.with_scratch(Pause::default(), |encoder, scratch| encoder.bytes(&joined, scratch, &mut ids))?;
        Ok(ids)
    }

    /// Returns the ids of `text`, and for each the end of its bytes in `text`: a token starts where the one before ends.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`], and if the text changes when it is normalized, so that no place in it can be named.
    pub fn encode_with_ends(&self, text: &str, allowed: SpecialSet<'_>) -> Result<(Vec<u32>, Vec<usize>)> {
        if let Some(model) = &self.sentencepiece {
            let found = self.encode_with_ranges(model, text, allowed)?;
            return Ok(found.into_iter().map(|(id, range)| (id, range.end)).unzip());
        }
        let (mut ids, mut ends, mut end) = (Vec::new(), Vec::new(), 0);
        self.added.cut(text, allowed, &mut |part| {
            match part {
                Part::Ordinary(text) => {
                    let after = if end == 0 { After::Nothing } else { After::Special };
                    let normal = self.normalizer.apply(text, after);
                    let prefix = self.normalizer.prefix_len(text, &normal)?;
                    let (begin, mut place) = (ids.len(), 0);
                    self.with_scratch(Pause::default(), |encoder, scratch| encoder.encode(&normal, scratch, &mut ids))?;
                    for &id in &ids[begin..] {
                        place += self.vocab.id_to_bytes(id).map_or(0, <[u8]>::len);
                        ends.push(end + place.saturating_sub(prefix));
                    }
                    end += text.len();
                }
                Part::Added(id, text) => {
                    ids.push(id);
                    end += text.len();
                    ends.push(end);
                }
            }
            Ok(())
        })?;
        Ok((ids, ends))
    }

    /// Returns the ids of `text`, and for each the range of characters its bytes fall into.
    ///
    /// Tokens that share a character both name it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_with_ends`].
    pub fn encode_with_offsets(&self, text: &str, allowed: SpecialSet<'_>) -> Result<(Vec<u32>, Offsets)> {
        if let Some(model) = &self.sentencepiece {
            let found = self.encode_with_ranges(model, text, allowed)?;
            let characters = character_numbers(text);
            let number = |(id, range): (u32, Range<usize>)| (id, (characters[range.start], characters[range.end]));
            return Ok(found.into_iter().map(number).unzip());
        }
        let (ids, ends) = self.encode_with_ends(text, allowed)?;
        let mut offsets = Vec::with_capacity(ids.len());
        let (mut begin, mut characters) = (0, 0);
        for end in ends {
            let is_first = |at: &usize| text.is_char_boundary(*at);
            // `characters` counts those that begin before `begin`; a token may start inside the last of them.
            let start = characters - usize::from(!text.is_char_boundary(begin));
            characters += (begin..end).filter(is_first).count();
            offsets.push((start, characters));
            begin = end;
        }
        Ok((ids, offsets))
    }

    /// Returns the ids of `text`, and for each the bytes of `text` that it stands for.
    fn encode_with_ranges(
        &self,
        model: &SentencePieceModel,
        text: &str,
        allowed: SpecialSet<'_>,
    ) -> Result<Vec<(u32, Range<usize>)>> {
        let (mut found, mut end) = (Vec::new(), 0);
        self.added.cut(text, allowed, &mut |part| {
            let begin = end;
            match part {
                Part::Ordinary(text) => {
                    end += text.len();
                    let after = if begin == 0 { After::Nothing } else { After::Special };
                    let ranges = model.encode_with_ranges(text.as_bytes(), after)?.into_iter();
                    found.extend(ranges.map(|(id, range)| (id, begin + range.start..begin + range.end)));
                }
                Part::Added(id, text) => {
                    end += text.len();
                    found.push((id, begin..end));
                }
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Returns the longest start of `text` that ends where a token and a character end and has at most `max_tokens` ids.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_with_ends`].
    pub fn truncate<'t>(&self, text: &'t str, max_tokens: usize, allowed: SpecialSet<'_>) -> Result<&'t str> {
        let (_, ends) = self.encode_with_ends(text, allowed)?;
        if ends.len() <= max_tokens {
            return Ok(text);
        }
        for &end in ends[..max_tokens].iter().rev() {
            // A shorter text may split otherwise and so have more ids: then a token less is tried.
            if text.is_char_boundary(end) && self.encode(&text[..end], allowed)?.len() <= max_tokens {
                return Ok(&text[..end]);
            }
        }
        Ok("")
    }

    /// Returns nothing if the text holds no special token of `disallowed`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if it holds one, naming it and where it stands.
    pub fn refuse_special(&self, text: &str, disallowed: SpecialSet<'_>) -> Result<()> {
        self.added.refuse(text, disallowed)
    }

    /// What encodes and decodes instead of the vocabulary, if anything does.
    pub(crate) fn sentencepiece(&self) -> Option<&SentencePieceModel> {
        self.sentencepiece.as_deref()
    }

    /// Whether bytes that are no UTF-8, and spaces that come first, are decoded as SentencePiece does.
    pub(crate) fn decodes_as_sentencepiece(&self) -> bool {
        self.decodes_as_sentencepiece
    }

    /// Returns the bytes of one token, special or not.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an id that no token has.
    pub fn id_to_bytes(&self, id: u32) -> Result<&[u8]> {
        let ordinary = self.vocab.id_to_bytes(id);
        let bytes = ordinary.or_else(|| self.added.bytes_of(id));
        bytes.ok_or_else(|| Error::NotFound(format!("id {id} is not in this vocabulary of {} ids", self.vocab_size())))
    }

    /// Returns whether an id is that of a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.added.by_id(id).is_some_and(|token| token.special)
    }

    /// Returns the id of the token with these bytes, special or not.
    pub fn bytes_to_id(&self, bytes: &[u8]) -> Option<u32> {
        let text = std::str::from_utf8(bytes);
        let added = || Some(self.added.by_content(text.ok()?)?.id);
        let spaced = || self.vocab.bytes_to_id(text.ok()?.replace(SPACE, " ").as_bytes());
        let marked = || Some(self.added.by_content(&text.ok()?.replace(' ', &SPACE.to_string()))?.id);
        let found = self.vocab.bytes_to_id(bytes).or_else(added);
        if self.spaces().is_some() { found.or_else(spaced).or_else(marked) } else { found }
    }

    /// Returns whether a text may be cut at the splitter's safe places and its parts encoded alone.
    pub(crate) fn is_cut_safe(&self, allowed: SpecialSet<'_>) -> bool {
        self.normalizer == Normalizer::None && self.added.finds_none(allowed)
    }

    fn run<S: Sink>(
        &self,
        text: &str,
        options: EncodeOptions<'_>,
        encoder: Encoder<'_>,
        scratch: &mut Scratch,
        sink: &mut S,
    ) -> Result<()> {
        let mut after = options.after;
        self.added.cut(text, options.allowed, &mut |part| {
            let after = std::mem::replace(&mut after, After::Special);
            match part {
                Part::Ordinary(text) => match &self.sentencepiece {
                    Some(model) => model.encode(text.as_bytes(), after, options.pause, sink),
                    None => encoder.encode(&self.normalizer.apply(text, after), scratch, sink),
                },
                Part::Added(id, _) => {
                    sink.take(&[id]);
                    Ok(())
                }
            }
        })
    }

    /// Runs `work` with scratch memory that no other thread uses, warm if there is any.
    fn with_scratch<R>(&self, pause: Pause<'_>, work: impl FnOnce(Encoder<'_>, &mut Scratch) -> R) -> R {
        let encoder =
            Encoder { pause, vocab: &self.vocab, pretokenizer: &self.pretokenizer, boundaries: &self.boundaries };
        let limit = self.cache_limit();
        let idle = self.idle.take().filter(|scratch| scratch.cache_limit() == limit);
        let mut scratch = idle.unwrap_or_else(|| Box::new(Scratch::new(limit)));
        let result = work(encoder, &mut scratch);
        self.idle.give_back(scratch);
        result
    }
}

impl Clone for Tokenizer {
    /// The copy warms up its own scratch memory.
    fn clone(&self) -> Self {
        Self {
            vocab: self.vocab.clone(),
            pretokenizer: self.pretokenizer.clone(),
            added: self.added.clone(),
            normalizer: self.normalizer,
            bos: self.bos,
            eos: self.eos,
            boundaries: Boundaries::new(&self.vocab),
            idle: Pool::new(),
            cache_limit: AtomicUsize::new(self.cache_limit()),
            sentencepiece: self.sentencepiece.clone(),
            decodes_as_sentencepiece: self.decodes_as_sentencepiece,
        }
    }
}

/// Returns for each byte of a text the number of the character that it is part of, and the number of all.
fn character_numbers(text: &str) -> Vec<usize> {
    let mut numbers = Vec::with_capacity(text.len() + 1);
    for (number, character) in text.chars().enumerate() {
        numbers.resize(numbers.len() + character.len_utf8(), number);
    }
    numbers.push(numbers.last().map_or(0, |last| last + 1));
    numbers
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("pattern", &self.pretokenizer.pattern())
            .finish_non_exhaustive()
    }
}
