//! The facade: text to ids and back.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crate::byte_alphabet::{byte_of, to_bytes, to_chars};
use crate::cache::DEFAULT_LIMIT;
use crate::encode::room_for_ids;
use crate::encode::{Counter, Encoder, Scratch, Sink};
use crate::encode_options::EncodeOptions;
use crate::interrupt::Interrupt;
use crate::normalize::{After, Normalizer, SPACE, Spaces};
use crate::pipeline::components::{PostProcessor, TemplateText};
use crate::pipeline::{Components, Item, Pipeline, Template};
use crate::pretokenize::Pretokenizer;
use crate::sentencepiece::SentencePieceModel;
use crate::special::{AddedToken, AddedTokens, SpecialSet};
use crate::unmergeable::UnmergeableBoundaries;
use crate::vocab::Vocab;
use crate::{Error, Result};
use bpe_llama_simd::ScratchPool;

/// What published vocabularies call the token that begins a text, in the order they are looked for.
const BOS_NAMES: &[&str] = &["<|begin_of_text|>", "<s>", "<bos>", "<|startoftext|>"];
const EOS_NAMES: &[&str] = &["<|end_of_text|>", "<|endoftext|>", "</s>", "<eos>"];

/// The ids of the tokens with a special role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SpecialIds {
    /// The beginning of a text.
    pub bos: Option<u32>,
    /// The end of a text.
    pub eos: Option<u32>,
    /// Padding of short rows.
    pub pad: Option<u32>,
    /// What unknown text is encoded as.
    pub unk: Option<u32>,
}

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
    pub(crate) vocab: Vocab,
    pretokenizer: Pretokenizer,
    pub(crate) added: AddedTokens,
    pub(crate) normalizer: Normalizer,
    ends: SpecialIds,
    pub(crate) post_processor: Option<Arc<PostProcessor>>,
    /// What the post-processor puts around a text.
    pub(crate) template: Template,
    /// The parts of the `tokenizer.json` that it was read from.
    pub(crate) components: Option<Arc<Components>>,
    /// Gives offsets and decodes where a `tokenizer.json` asks for more than bytes.
    pub(crate) pipeline: Option<Arc<Pipeline>>,
    /// What this tokenizer does as a pipeline, once it was asked for.
    pub(crate) equivalent: OnceLock<Arc<Pipeline>>,
    /// Why the pipeline encodes too, if it does: the part of the file that no faster way is known for.
    general_because: Option<String>,
    /// What encodes and decodes instead of the vocabulary, where byte-level merging cannot say a SentencePiece model.
    sentencepiece: Option<Arc<SentencePieceModel>>,
    /// Whether bytes that are no UTF-8, and spaces that come first, are decoded as SentencePiece does.
    decodes_as_sentencepiece: bool,
    /// Whether an added token is decoded to other bytes than the ordinary token of its id.
    added_go_first: bool,
    boundaries: UnmergeableBoundaries,
    /// Warm scratch memory, one for each thread that was ever in here at the same time as others.
    idle: ScratchPool<Scratch>,
    cache_limit: AtomicUsize,
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
        let normalizer = if nfc { Normalizer::Nfc } else { Normalizer::None };
        let added = AddedTokens::new(added, |text| normalizer.normal_form(text))?;
        for token in added.tokens() {
            if vocab.id_to_bytes(token.id).is_some_and(|bytes| bytes != token.content.as_bytes()) {
                return Err(Error::InvalidArgument(format!(
                    "special token {:?} has id {}, which an ordinary token has already",
                    token.content, token.id
                )));
            }
        }
        Ok(Self::assemble(vocab, pretokenizer, added, normalizer))
    }

    /// Puts the parts together; the ends are the special tokens of a usual name.
    pub(crate) fn assemble(
        vocab: Vocab,
        pretokenizer: Pretokenizer,
        added: AddedTokens,
        normalizer: Normalizer,
    ) -> Self {
        let named = |names: &[&str]| names.iter().find_map(|name| Some(added.by_content(name)?.id));
        let ends = SpecialIds { bos: named(BOS_NAMES), eos: named(EOS_NAMES), pad: None, unk: None };
        Self {
            ends,
            boundaries: UnmergeableBoundaries::new(&vocab),
            vocab,
            pretokenizer,
            added,
            normalizer,
            post_processor: None,
            template: Template::default(),
            components: None,
            pipeline: None,
            equivalent: OnceLock::new(),
            general_because: None,
            sentencepiece: None,
            decodes_as_sentencepiece: false,
            added_go_first: false,
            idle: ScratchPool::new(),
            cache_limit: AtomicUsize::new(DEFAULT_LIMIT),
        }
    }

    /// Returns the tokenizer that encodes by a pipeline; `because` names what no faster way is known for.
    pub(crate) fn general(vocab: Vocab, added: AddedTokens, pipeline: Pipeline, because: String) -> Result<Self> {
        let mut tokenizer = Self::assemble(vocab, Pretokenizer::whole()?, added, Normalizer::None);
        tokenizer.pipeline = Some(Arc::new(pipeline));
        tokenizer.general_because = Some(because);
        Ok(tokenizer)
    }

    /// Returns the tokenizer that encodes and decodes by this model. It keeps vocabulary and added tokens for look-ups.
    #[must_use]
    pub(crate) fn with_sentencepiece(mut self, model: SentencePieceModel) -> Self {
        self.sentencepiece = Some(Arc::new(model));
        self.decoding_as_sentencepiece()
    }

    /// Returns the tokenizer that encodes and decodes by the SentencePiece model of another, if that has one.
    #[must_use]
    pub(crate) fn encoding_as(mut self, other: &Self) -> Self {
        self.sentencepiece.clone_from(&other.sentencepiece);
        self.decodes_as_sentencepiece = other.decodes_as_sentencepiece;
        self
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

    /// What encodes and decodes instead of the vocabulary, if anything does.
    pub(crate) fn sentencepiece(&self) -> Option<&SentencePieceModel> {
        self.sentencepiece.as_deref()
    }

    /// Whether bytes that are no UTF-8, and spaces that come first, are decoded as SentencePiece does.
    pub(crate) fn decodes_as_sentencepiece(&self) -> bool {
        self.decodes_as_sentencepiece
    }

    /// Decodes the ids of added tokens as these, where ordinary tokens of the same ids have other bytes.
    pub(crate) fn prefer_added_tokens(&mut self) {
        let differs = |token: &AddedToken| {
            self.vocab.id_to_bytes(token.id).is_some_and(|bytes| self.added.bytes_of(token.id) != Some(bytes))
        };
        self.added_go_first = self.added.tokens().iter().any(differs);
    }

    /// Returns whether added tokens may be looked for in normalized text: not where SentencePiece normalizes.
    pub fn normalizes_added_tokens(&self) -> bool {
        self.spaces().is_none() || self.pipeline.is_some()
    }

    /// Returns the tokenizer whose pipeline encodes from now on.
    pub(crate) fn encoding_by_pipeline(mut self, because: &str) -> Self {
        self.general_because = Some(because.to_owned());
        self
    }

    /// Returns why encoding takes the general way, step by step as a `tokenizer.json` spells it, or `None` if it takes a
    /// faster one.
    pub fn general_because(&self) -> Option<&str> {
        self.general_because.as_deref()
    }

    /// Returns the tokenizer that treats the spaces of a text as SentencePiece does, before it is split.
    #[must_use]
    pub fn with_spaces(mut self, spaces: Spaces) -> Self {
        self.normalizer = Normalizer::Spaces(spaces);
        // The decoders of Hugging Face `tokenizers` take added tokens for tokens like others.
        self.added.decode_by(|name| name.replace(SPACE, " ").into_bytes());
        self
    }

    /// Returns the tokenizer with these ids as the beginning and the end of a text.
    ///
    /// Without this call they are the special tokens of a usual name, such as `<|begin_of_text|>` or `</s>`.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an id that no token has.
    pub fn with_bos_eos(self, bos: Option<u32>, eos: Option<u32>) -> Result<Self> {
        let ends = SpecialIds { bos, eos, ..self.ends };
        self.with_special_ids(ends)
    }

    /// Returns the tokenizer with these ids in their roles.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an id that no token has.
    pub fn with_special_ids(mut self, ends: SpecialIds) -> Result<Self> {
        for id in [ends.bos, ends.eos, ends.pad, ends.unk].into_iter().flatten() {
            self.id_to_bytes(id)?;
        }
        self.ends = ends;
        Ok(self)
    }

    /// Returns the tokenizer with this post-processor; the tokens it puts around a text begin and end it.
    ///
    /// # Errors
    /// [`Error::Format`] if it is not supported, or names an id that no token has.
    pub(crate) fn with_post_processor(mut self, post_processor: PostProcessor) -> Result<Self> {
        let template = Template::compile(&post_processor)?;
        for id in template.special_ids() {
            self.id_to_bytes(id).map_err(|_| {
                Error::Format(format!("tokenizer.json: post_processor names id {id}, which no token has"))
            })?;
        }
        if let Some((before, after)) = template.around() {
            self.ends.bos = before.first().copied().or(self.ends.bos);
            self.ends.eos = after.last().copied().or(self.ends.eos);
        }
        self.template = template;
        self.post_processor = Some(Arc::new(post_processor));
        Ok(self)
    }

    /// Returns what the post-processor makes of one text, or of a pair: special tokens by their ids, texts as `"A"` and
    /// `"B"`; each with its type id, `None` where texts have 0 and 1.
    pub fn template_items(&self, pair: bool) -> Vec<(Option<u32>, Option<&'static str>, Option<u32>)> {
        let items = if pair { &self.template.pair } else { &self.template.single };
        let item = |item: &Item| match *item {
            Item::Special(id, type_id) => (Some(id), None, Some(type_id)),
            Item::Text(TemplateText::A, type_id) => (None, Some("A"), type_id),
            Item::Text(TemplateText::B, type_id) => (None, Some("B"), type_id),
        };
        items.iter().map(item).collect()
    }

    /// The ids with a role of their own.
    pub fn special_ids(&self) -> SpecialIds {
        self.ends
    }

    /// The id that begins a text, if there is one.
    pub fn bos_id(&self) -> Option<u32> {
        self.ends.bos
    }

    /// The id that ends a text, if there is one.
    pub fn eos_id(&self) -> Option<u32> {
        self.ends.eos
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
    /// As [`Tokenizer::encode`], and what `options.interrupt` returns.
    pub fn encode_into(&self, text: &str, options: EncodeOptions<'_>, ids: &mut Vec<u32>) -> Result<()> {
        if ids.capacity() == 0 {
            *ids = room_for_ids(text.len());
        }
        ids.extend(options.bos);
        self.run(text, options, ids)?;
        ids.extend(options.eos);
        Ok(())
    }

    /// Returns the ids of a text that follows other text, or a special token where that is `None`.
    ///
    /// They differ from those of the text alone where a space is put before a text: before one that follows text none is,
    /// but for the one that was left out at the end of that text where spaces collapse.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_ordinary`], and what the interrupt check returns.
    pub fn encode_following(&self, text: &str, before: Option<&str>, interrupt: Interrupt<'_>) -> Result<Vec<u32>> {
        if self.general_because.is_some()
            && let Some(before) = before.filter(|before| !before.is_empty())
        {
            let whole = [before, text].concat();
            let tokens = self.encode_with_spans(&whole, SpecialSet::None, interrupt)?;
            let is_new = |token: &&crate::pipeline::Token| token.end > before.len();
            return Ok(tokens.iter().filter(is_new).map(|token| token.id).collect());
        }
        let mut ids = Vec::new();
        let after = before.map_or(After::Special, After::of);
        self.encode_into(text, EncodeOptions { after, interrupt, ..EncodeOptions::default() }, &mut ids)?;
        Ok(ids)
    }

    /// Returns the merges, best first, as pairs of ids.
    pub fn merges(&self) -> Vec<(u32, u32)> {
        match (&self.pipeline, &self.general_because) {
            (Some(pipeline), Some(_)) => pipeline.merges(),
            _ => self.vocab.merges().to_vec(),
        }
    }

    /// Returns all tokens but the added ones with their bytes, in id order.
    pub fn tokens(&self) -> Vec<(&[u8], u32)> {
        if self.general_because.is_some() {
            return self.vocab.decode_only_tokens().collect();
        }
        self.vocab.tokens().collect()
    }

    /// Returns the name of a token as a `tokenizer.json` spells it: an added token's text, and else the characters of
    /// GPT-2's byte alphabet, or `\u{2581}` for spaces.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an id that no token has.
    pub fn id_to_token(&self, id: u32) -> Result<String> {
        if let Some(token) = self.added.by_id(id) {
            return Ok(token.content.clone());
        }
        let piece = || self.sentencepiece.as_ref()?.piece(id);
        if let Some(name) = piece().or_else(|| self.pipeline.as_ref()?.token(id)) {
            return Ok(name.to_owned());
        }
        let bytes = self.id_to_bytes(id)?;
        if self.spaces().is_none() {
            return Ok(to_chars(bytes));
        }
        let is_byte = self.vocab.byte_fallback().is_some_and(|ids| ids.contains(&id));
        Ok(if is_byte {
            format!("<0x{:02X}>", bytes[0])
        } else {
            String::from_utf8_lossy(bytes).replace(' ', "\u{2581}")
        })
    }

    /// Returns how many tokens there are, added ones included.
    pub fn token_count(&self) -> usize {
        if let (Some(pipeline), Some(_)) = (&self.pipeline, &self.general_because) {
            let is_new = |token: &&AddedToken| pipeline.token(token.id).is_none();
            return pipeline.tokens().count() + self.added_tokens().iter().filter(is_new).count();
        }
        let is_new = |token: &&AddedToken| self.vocab.id_to_bytes(token.id).is_none();
        let added: std::collections::HashSet<u32> =
            self.added_tokens().iter().filter(is_new).map(|token| token.id).collect();
        self.vocab.len() + added.len()
    }

    /// Returns how many ids [`Tokenizer::encode_into`] would append, without making them.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_into`].
    pub fn count(&self, text: &str, options: EncodeOptions<'_>) -> Result<usize> {
        let mut counter = Counter::default();
        self.run(text, options, &mut counter)?;
        Ok(counter.0 + usize::from(options.bos.is_some()) + usize::from(options.eos.is_some()))
    }

    /// Returns the ids of any bytes.
    ///
    /// The longest valid UTF-8 start is encoded as text; the rest, with the last piece of that text, is one piece. So
    /// text gives the ids of [`Tokenizer::encode_ordinary`], and [`Tokenizer::decode_bytes`] gives the bytes back (but
    /// for `▁`, which to SentencePiece is a space).
    ///
    /// # Errors
    /// As [`Tokenizer::encode_ordinary`], and what the interrupt check returns.
    ///
    /// # Source
    /// tiktoken treats bytes that are no UTF-8 the same way.
    pub fn encode_bytes(&self, bytes: &[u8], interrupt: Interrupt<'_>) -> Result<Vec<u32>> {
        let encode = |text: &str| {
            let mut ids = Vec::new();
            self.encode_into(text, EncodeOptions { interrupt, ..EncodeOptions::default() }, &mut ids)?;
            Ok::<_, Error>(ids)
        };
        let (text, tail) = match std::str::from_utf8(bytes) {
            Ok(text) => return encode(text),
            Err(error) => {
                let (text, tail) = bytes.split_at(error.valid_up_to());
                (std::str::from_utf8(text).unwrap_or_default(), tail)
            }
        };
        if let Some(because) = &self.general_because {
            return Err(Error::InvalidArgument(format!(
                "byte {} is no UTF-8, and this tokenizer encodes only text: its file asks for {because}",
                text.len()
            )));
        }
        if let Some(model) = &self.sentencepiece {
            let mut ids = Vec::new();
            model.encode(bytes, After::Nothing, interrupt, &mut ids)?;
            return Ok(ids);
        }
        if self.spaces().is_some() {
            // The byte that is no text becomes a token of its own, so nothing merges across it.
            let mut ids = encode(text)?;
            self.with_scratch(interrupt, |encoder, scratch| encoder.bytes(tail, scratch, &mut ids))?;
            return Ok(ids);
        }
        let mut ids = encode(text)?;
        let mut last = 0;
        self.pretokenizer.each_piece(text, interrupt, |start, _| last = start)?;
        let mut unsettled = encode(&text[last..])?.len();
        // A piece of white space may take in the white space before it once more follows.
        let is_blank =
            |id: u32| self.vocab.id_to_bytes(id).is_some_and(|bytes| bytes.iter().all(|byte| b" \n\t".contains(byte)));
        if unsettled > 0 && is_blank(ids[ids.len() - unsettled]) {
            unsettled += ids[..ids.len() - unsettled].iter().rev().take_while(|&&id| is_blank(id)).count();
        }
        let mut joined = self.decode_bytes(&ids[ids.len() - unsettled..])?;
        joined.extend_from_slice(tail);
        ids.truncate(ids.len() - unsettled);
        self.with_scratch(interrupt, |encoder, scratch| encoder.bytes(&joined, scratch, &mut ids))?;
        Ok(ids)
    }

    /// Returns nothing if the text holds no special token of `disallowed`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if it holds one, naming it and where it stands; what the interrupt check returns.
    pub fn refuse_special(&self, text: &str, disallowed: SpecialSet<'_>, interrupt: Interrupt<'_>) -> Result<()> {
        self.added.refuse(text, disallowed, interrupt)
    }

    /// Returns the bytes of one token, special or not.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an id that no token has.
    #[inline]
    pub fn id_to_bytes(&self, id: u32) -> Result<&[u8]> {
        match self.vocab.id_to_bytes(id) {
            Some(bytes) if !self.added_go_first => Ok(bytes),
            ordinary => self.added_or_ordinary_bytes(id, ordinary),
        }
    }

    #[cold]
    fn added_or_ordinary_bytes<'a>(&'a self, id: u32, ordinary: Option<&'a [u8]>) -> Result<&'a [u8]> {
        // A decoder may leave nothing of a token.
        let nothing = || self.pipeline.as_ref()?.token(id).map(|_| &[][..]);
        let bytes = self.added.bytes_of(id).or(ordinary).or_else(nothing);
        bytes.ok_or_else(|| Error::NotFound(format!("id {id} is not in this vocabulary of {} ids", self.vocab_size())))
    }

    /// Returns whether an id is that of a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.added.by_id(id).is_some_and(|token| token.special)
    }

    /// Returns the id of the token that is called so: an added token's text, and else the name that
    /// [`Tokenizer::id_to_token`] gives; or, where no token is, of the token with these bytes.
    pub fn token_to_id(&self, name: &str) -> Option<u32> {
        let added = || Some(self.added.by_content(name)?.id);
        let named = || match (&self.sentencepiece, &self.pipeline) {
            (Some(model), _) => model.id_of_piece(name),
            (None, Some(pipeline)) => pipeline.token_to_id(name),
            _ if self.spaces().is_some() => {
                let byte = byte_of(name).and_then(|byte| Some(self.vocab.byte_fallback()?[usize::from(byte)]));
                byte.or_else(|| self.vocab.bytes_to_id(name.replace(SPACE, " ").as_bytes()))
            }
            _ => self.vocab.bytes_to_id(&to_bytes(name)?),
        };
        added().or_else(named).or_else(|| self.bytes_to_id(name.as_bytes()))
    }

    /// Returns the id of the token with these bytes, special or not.
    pub fn bytes_to_id(&self, bytes: &[u8]) -> Option<u32> {
        let text = std::str::from_utf8(bytes);
        let added = || Some(self.added.by_content(text.ok()?)?.id);
        if self.general_because.is_some() {
            let by_name = |name: &str| self.pipeline.as_ref()?.token_to_id(name);
            let spelt = || if self.decodes_bytes() { by_name(&to_chars(bytes)) } else { by_name(text.ok()?) };
            let marked = || by_name(&text.ok()?.replace(' ', &SPACE.to_string()));
            return added().or_else(spelt).or_else(|| by_name(text.ok()?)).or_else(marked);
        }
        let spaced = || self.vocab.bytes_to_id(text.ok()?.replace(SPACE, " ").as_bytes());
        let marked = || Some(self.added.by_content(&text.ok()?.replace(' ', &SPACE.to_string()))?.id);
        let found = self.vocab.bytes_to_id(bytes).or_else(added);
        if self.spaces().is_some() { found.or_else(spaced).or_else(marked) } else { found }
    }

    /// Returns whether a text may be cut at the splitter's safe places and its parts encoded alone.
    pub(crate) fn is_cut_safe(&self, allowed: SpecialSet<'_>) -> bool {
        let is_plain = self.normalizer == Normalizer::None && self.general_because.is_none();
        is_plain && self.sentencepiece.is_none() && self.added.finds_none(allowed)
    }

    /// Hands the ids of a text to `sink`.
    #[inline]
    fn run<S: Sink>(&self, text: &str, options: EncodeOptions<'_>, sink: &mut S) -> Result<()> {
        self.with_scratch(options.interrupt, |encoder, scratch| {
            if self.is_cut_safe(options.allowed) {
                encoder.encode(text, scratch, sink)
            } else {
                self.run_parts(text, options, encoder, scratch, sink)
            }
        })
    }

    /// Encodes a text that is normalized, or in which added tokens are looked for.
    #[inline(never)]
    fn run_parts<S: Sink>(
        &self,
        text: &str,
        options: EncodeOptions<'_>,
        encoder: Encoder<'_>,
        scratch: &mut Scratch,
        sink: &mut S,
    ) -> Result<()> {
        if let (Some(pipeline), Some(_)) = (&self.pipeline, &self.general_because) {
            let added = (&self.added, options.allowed);
            return pipeline.encode(text, added, options.interrupt, None, &mut |ids| sink.take(ids));
        }
        self.added.check(options.allowed)?;
        let mut after = options.after;
        self.added.split_raw(text, options.allowed, options.interrupt, &mut |part| {
            let after = std::mem::replace(&mut after, After::Special);
            if let Some(id) = part.added {
                sink.take(&[id]);
                return Ok(());
            }
            if let Some(model) = &self.sentencepiece {
                return model.encode(text[part.bytes].as_bytes(), after, options.interrupt, sink);
            }
            let normal = self.normalizer.apply(&text[part.bytes], after, options.interrupt)?;
            self.added.split_normalized(&normal, options.allowed, options.interrupt, &mut |part| {
                if let Some(id) = part.added {
                    sink.take(&[id]);
                    return Ok(());
                }
                encoder.encode(&normal[part.bytes], scratch, sink)
            })
        })
    }

    /// Runs `work` with scratch memory that no other thread uses, warm if there is any.
    #[inline]
    pub(crate) fn with_scratch<R>(
        &self,
        interrupt: Interrupt<'_>,
        work: impl FnOnce(Encoder<'_>, &mut Scratch) -> R,
    ) -> R {
        let encoder =
            Encoder { interrupt, vocab: &self.vocab, pretokenizer: &self.pretokenizer, boundaries: &self.boundaries };
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
            ends: self.ends,
            post_processor: self.post_processor.clone(),
            template: self.template.clone(),
            components: self.components.clone(),
            pipeline: self.pipeline.clone(),
            equivalent: self.equivalent.clone(),
            general_because: self.general_because.clone(),
            sentencepiece: self.sentencepiece.clone(),
            decodes_as_sentencepiece: self.decodes_as_sentencepiece,
            added_go_first: self.added_go_first,
            boundaries: UnmergeableBoundaries::new(&self.vocab),
            idle: ScratchPool::new(),
            cache_limit: AtomicUsize::new(self.cache_limit()),
        }
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("pattern", &self.pretokenizer.pattern())
            .finish_non_exhaustive()
    }
}
