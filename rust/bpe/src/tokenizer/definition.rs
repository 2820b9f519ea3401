//! [`Tokenizer`]: its parts, constructors and accessors.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::special_ids::SpecialIds;
use crate::Result;
use crate::cache::DEFAULT_LIMIT;
use crate::encode::{Scratch, UnmergeableBoundaries};
use crate::normalize::{METASPACE, Normalizer, Spaces};
use crate::pipeline::components::PostProcessor;
use crate::pipeline::{Components, Pipeline, Template};
use crate::pretokenize::Pretokenizer;
use crate::sentencepiece::SentencePieceModel;
use crate::special::{AddedToken, AddedTokens};
use crate::vocab::Vocab;
use bpe_llama_simd::ScratchPool;

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
    pub(super) pretokenizer: Pretokenizer,
    pub(crate) added: AddedTokens,
    pub(crate) normalizer: Normalizer,
    pub(super) special_ids: SpecialIds,
    pub(crate) post_processor: Option<Arc<PostProcessor>>,
    /// The post-processor, compiled.
    pub(crate) template: Template,
    /// The components of the `tokenizer.json` that it was read from.
    pub(crate) components: Option<Arc<Components>>,
    /// Computes offsets and decodes if a `tokenizer.json` needs more than byte-level decoding.
    pub(crate) pipeline: Option<Arc<Pipeline>>,
    /// The pipeline equivalent to this tokenizer, built on first use.
    pub(crate) equivalent: OnceLock<Arc<Pipeline>>,
    /// If the pipeline encodes, too: the component of the file that has no faster implementation.
    pub(super) general_because: Option<String>,
    /// Encodes and decodes instead of the vocabulary: a SentencePiece model that byte-level merging cannot express.
    pub(super) sentencepiece: Option<Arc<SentencePieceModel>>,
    /// Whether invalid UTF-8 and leading spaces are decoded as by SentencePiece.
    decodes_as_sentencepiece: bool,
    /// Whether some added token is decoded to other bytes than the ordinary token of its id.
    pub(super) added_first: bool,
    pub(super) boundaries: UnmergeableBoundaries,
    /// Scratch memory of earlier calls, with warm caches: one for each thread that encoded concurrently.
    pub(super) idle: ScratchPool<Scratch>,
    cache_limit: AtomicUsize,
}

impl Tokenizer {
    /// Returns the tokenizer with these parts.
    ///
    /// With `nfc`, text is normalized to Unicode's normal form C first, as Qwen's `tokenizer.json` requires.
    ///
    /// # Errors
    /// [`crate::Error::InvalidArgument`] if an added token is empty or given twice, or takes the id of an ordinary
    /// token that has other bytes.
    pub fn new(vocab: Vocab, pretokenizer: Pretokenizer, added: Vec<AddedToken>, nfc: bool) -> Result<Self> {
        let normalizer = if nfc { Normalizer::Nfc } else { Normalizer::None };
        let added = AddedTokens::new(added, |text| normalizer.normal_form(text))?;
        for token in added.tokens() {
            if vocab.id_to_bytes(token.id).is_some_and(|bytes| bytes != token.content.as_bytes()) {
                return Err(invalid!(
                    "special token {:?} has id {}, which an ordinary token has already",
                    token.content,
                    token.id
                ));
            }
        }
        Ok(Self::assemble(vocab, pretokenizer, added, normalizer))
    }

    /// Returns the tokenizer with these parts; BOS and EOS are special tokens with a usual name.
    pub(crate) fn assemble(
        vocab: Vocab,
        pretokenizer: Pretokenizer,
        added: AddedTokens,
        normalizer: Normalizer,
    ) -> Self {
        Self {
            special_ids: SpecialIds::by_name(&added),
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
            added_first: false,
            idle: ScratchPool::new(),
            cache_limit: AtomicUsize::new(DEFAULT_LIMIT),
        }
    }

    /// Returns the tokenizer that encodes by a pipeline. `because` names the component without a faster implementation.
    pub(crate) fn general(vocab: Vocab, added: AddedTokens, pipeline: Pipeline, because: String) -> Result<Self> {
        let mut tokenizer = Self::assemble(vocab, Pretokenizer::whole()?, added, Normalizer::None);
        tokenizer.pipeline = Some(Arc::new(pipeline));
        tokenizer.general_because = Some(because);
        Ok(tokenizer)
    }

    /// Returns the tokenizer that encodes and decodes by this model; the vocabulary serves look-ups only.
    #[must_use]
    pub(crate) fn with_sentencepiece(mut self, model: SentencePieceModel) -> Self {
        self.sentencepiece = Some(Arc::new(model));
        self.decoding_as_sentencepiece()
    }

    /// Returns the tokenizer that encodes and decodes by the SentencePiece model of `other`, if it has one.
    #[must_use]
    pub(crate) fn encoding_as(mut self, other: &Self) -> Self {
        self.sentencepiece.clone_from(&other.sentencepiece);
        self.decodes_as_sentencepiece = other.decodes_as_sentencepiece;
        self
    }

    /// Returns the tokenizer that decodes invalid UTF-8 and leading spaces as SentencePiece does.
    #[must_use]
    pub(crate) fn decoding_as_sentencepiece(mut self) -> Self {
        self.decodes_as_sentencepiece = true;
        self
    }

    /// Returns the model file that this tokenizer encodes by, if byte-level merging cannot express it.
    ///
    /// [`Tokenizer::from_sentencepiece`] turns it into the same tokenizer.
    pub fn sentencepiece_model(&self) -> Option<&[u8]> {
        self.sentencepiece.as_deref().map(SentencePieceModel::source)
    }

    /// Returns the model that encodes and decodes instead of the vocabulary, if there is one.
    pub(crate) fn sentencepiece(&self) -> Option<&SentencePieceModel> {
        self.sentencepiece.as_deref()
    }

    /// Returns whether invalid UTF-8 and leading spaces are decoded as by SentencePiece.
    pub(crate) fn decodes_as_sentencepiece(&self) -> bool {
        self.decodes_as_sentencepiece
    }

    /// From now on, decodes an id to its added token if an ordinary token of the same id has other bytes.
    pub(crate) fn prefer_added_tokens(&mut self) {
        let differs = |token: &AddedToken| {
            self.vocab.id_to_bytes(token.id).is_some_and(|bytes| self.added.bytes_of(token.id) != Some(bytes))
        };
        self.added_first = self.added.tokens().iter().any(differs);
    }

    /// Returns whether added tokens can be matched in normalized text, which SentencePiece does not support.
    pub fn normalizes_added_tokens(&self) -> bool {
        self.spaces().is_none() || self.pipeline.is_some()
    }

    /// Returns the tokenizer that encodes by its pipeline. `because` names the component without a faster implementation.
    pub(crate) fn encoding_by_pipeline(mut self, because: &str) -> Self {
        self.general_because = Some(because.to_owned());
        self
    }

    /// Returns why this tokenizer encodes by the general pipeline: the component of its `tokenizer.json` without a faster
    /// implementation. `None` if it encodes by the fast path.
    pub fn general_because(&self) -> Option<&str> {
        self.general_because.as_deref()
    }

    /// Returns the tokenizer that normalizes the spaces of a text as SentencePiece does.
    #[must_use]
    pub fn with_spaces(mut self, spaces: Spaces) -> Self {
        self.normalizer = Normalizer::Spaces(spaces);
        // The decoders of Hugging Face `tokenizers` treat added tokens like other tokens.
        self.added.decode_by(|name| name.replace(METASPACE, " ").into_bytes());
        self
    }

    /// Returns the ordinary tokens and their merges.
    pub fn vocab(&self) -> &Vocab {
        &self.vocab
    }

    /// Returns the pre-tokenizer.
    pub fn pretokenizer(&self) -> &Pretokenizer {
        &self.pretokenizer
    }

    /// Returns the added tokens, including special tokens, in id order.
    pub fn added_tokens(&self) -> &[AddedToken] {
        self.added.tokens()
    }

    /// Returns whether text is normalized to normal form C.
    pub fn normalizes(&self) -> bool {
        self.normalizer == Normalizer::Nfc
    }

    /// Returns how spaces are normalized, if as by SentencePiece.
    pub fn spaces(&self) -> Option<Spaces> {
        if let Normalizer::Spaces(spaces) = self.normalizer { Some(spaces) } else { None }
    }

    /// Returns the approximate limit in bytes on the cache of each thread that encodes; 60 MiB by default.
    pub fn cache_limit(&self) -> usize {
        self.cache_limit.load(Ordering::Relaxed)
    }

    /// Sets [`Tokenizer::cache_limit`] and drops all caches. A cache takes at least 256 KiB.
    pub fn set_cache_limit(&self, bytes: usize) {
        self.cache_limit.store(bytes, Ordering::Relaxed);
        self.idle.clear();
    }
}

impl Clone for Tokenizer {
    /// The copy has empty caches of its own.
    fn clone(&self) -> Self {
        Self {
            vocab: self.vocab.clone(),
            pretokenizer: self.pretokenizer.clone(),
            added: self.added.clone(),
            normalizer: self.normalizer,
            special_ids: self.special_ids,
            post_processor: self.post_processor.clone(),
            template: self.template.clone(),
            components: self.components.clone(),
            pipeline: self.pipeline.clone(),
            equivalent: self.equivalent.clone(),
            general_because: self.general_because.clone(),
            sentencepiece: self.sentencepiece.clone(),
            decodes_as_sentencepiece: self.decodes_as_sentencepiece,
            added_first: self.added_first,
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
