"""The model: load a bundle once, ask as often as you like."""

import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .accelerator import Accelerator
from .audit_record import Recorder
from .batch import answer_batch
from .batch_decoder import BatchDecoder
from .bundle import DECODER, EMBEDDINGS, Bundle, open_bundle
from .constrain import AnswerForm, ending_tokens
from .context import check_fit, context_length
from .decoding import DEFAULT_DECODING, Decoding
from .device import choose_device, half_kv_bytes
from .device_decoder import AnyDecoder, new_sequence
from .dicom.view import DEFAULT_VIEW, View
from .embeddings import EmbeddingTable
from .errors import InputError
from .generate import Generation, Limits, Rows, Token, generate, generate_alone
from .graphs import open_graphs
from .images import ImageSource, LoadedImage
from .interruption import Interruption
from .logits import Logits
from .lookup import PromptLookup
from .prefill import Prefill
from .prefix import PrefixCache
from .processor import Processor, Request
from .result import Answer
from .sampling import Sampler
from .session import check_device, one_line_failures
from .stream import Clock, Progress, Record, Stream
from .threads import usable_cores
from .vision import VisionEncoder

DEFAULT_PREFIX_MB = 512
# Tokens of a given text that go through the decoder at once: it keeps the logits of a call for every number of tokens.
_SCORED_AT_ONCE = 16

Images = ImageSource | LoadedImage | Sequence[ImageSource | LoadedImage] | None


class MedVLM:
    """A loaded bundle. It answers one question at a time: starting another ends the stream before it.

    A question about images of an earlier one goes on from there: their features, and the KV cache up to where the
    prompts differ, are kept. Not safe for use from several threads at once: give each its own instance, or a lock.
    Another thread may set `interruption`: what is computed then ends early, and raises `Interrupted`.
    """

    def __init__(
        self,
        bundle: Bundle,
        processor: Processor | None = None,
        *,
        device: str = "auto",
        threads: int | None = None,
        max_length: int | None = None,
        prefix_mb: int = DEFAULT_PREFIX_MB,
        audit: str | os.PathLike[str] | None = None,
        gpu_mem_limit: int | None = None,
    ) -> None:
        """Open the sessions of a checked bundle; see `load`."""
        check_device(device)
        if prefix_mb < 0:
            raise InputError(f"prefix_mb is {prefix_mb}; give 0 or more")
        started = time.perf_counter()
        dims = bundle.manifest.text
        self.manifest = bundle.manifest
        self.processor = processor or Processor(bundle)
        self.max_length = context_length(bundle, max_length)
        threads = check_threads(threads)
        limit = None if gpu_mem_limit is None else gpu_mem_limit * 1_000_000
        self._computing = choose_device(device, bundle, self.max_length, prefix_mb * 1_000_000, limit)
        self._recorder: Recorder | None = None
        if audit is not None:
            loaded_with: dict[str, Any] = {"threads": threads or usable_cores(), "max_length": self.max_length}
            loaded_with |= {} if self.device == "cpu" else {"device": self.device}
            self._recorder = Recorder(Path(audit), bundle, loaded_with)
        self._embeddings = EmbeddingTable(
            bundle.path(EMBEDDINGS), bundle.manifest.embedding_dtype, dims.vocab_size, dims.hidden_size
        )
        gpu = self._computing.gpu
        with one_line_failures("loading", gpu):
            self.interruption = Interruption()
            vision, self._sessions = open_graphs(bundle, self._computing, threads, limit, self.interruption)
        self._vision = VisionEncoder(vision, bundle.manifest.vision, self.interruption.options)
        token_bytes = dims.kv_bytes_per_token if gpu is None else half_kv_bytes(dims)
        # Not a method: the prefixes would hold the model, which would then outlive its last user.
        self._new_sequence = partial(new_sequence, self._sessions, self._embeddings, dims, gpu)
        prefixes = PrefixCache(prefix_mb * 1_000_000, token_bytes, self._new_sequence)
        self.prefill = Prefill(self._embeddings, self._vision, prefixes, dims, gpu)
        self.load_s = time.perf_counter() - started
        self._stream: Stream | None = None

    @classmethod
    def load(
        cls,
        bundle: str | os.PathLike[str],
        device: str = "auto",
        threads: int | None = None,
        *,
        max_length: int | None = None,
        prefix_mb: int = DEFAULT_PREFIX_MB,
        hash_files: bool = False,
        audit: str | os.PathLike[str] | None = None,
        gpu_mem_limit: int | None = None,
    ) -> "MedVLM":
        """Load the bundle in a directory.

        device: "cpu"; "cuda"; or "auto", which takes CUDA where the bundle is for it and it can be had, and says in
        `device_note` why it cannot. threads: None takes one for each physical core that the process may use.
        max_length: tokens that prompt and answer may have together, by default 8192 or what the model holds. prefix_mb:
        megabytes of earlier questions to keep for later ones about the same images; 0 keeps nothing. hash_files: check
        every file's sha256 first. audit: a file to add a line to for each answer (see `medvlm.runtime.audit`); an
        answer that it cannot note is not given. gpu_mem_limit: megabytes of the GPU's memory that may be taken.
        Raises `BundleError` for a bundle that is not sound, `InputError` for an argument that is not.
        """
        return cls(
            open_bundle(Path(bundle), hash_files=hash_files),
            device=device,
            threads=threads,
            max_length=max_length,
            prefix_mb=prefix_mb,
            audit=audit,
            gpu_mem_limit=gpu_mem_limit,
        )

    @property
    def device(self) -> str:
        """Where it computes: "cpu" or "cuda"."""
        return self._computing.name

    @property
    def gpu(self) -> Accelerator | None:
        """The GPU that it computes on; None on a CPU."""
        return self._computing.gpu

    @property
    def decoder_bytes(self) -> int:
        """Bytes of the weights that a token reads, all of them: of the decoder and its head."""
        if self._computing.needed is not None:
            return self._computing.needed.decoder
        return self.manifest.files[f"{DECODER}.data"].size

    @property
    def device_note(self) -> str:
        """Why it does not compute on a GPU that the bundle is for; empty where there is nothing to say."""
        return self._computing.note

    def ask(
        self,
        image: Images,
        question: str,
        decoding: Decoding = DEFAULT_DECODING,
        *,
        raw: bool = False,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        view: View = DEFAULT_VIEW,
    ) -> Answer:
        """Ask `question` of an image, of several in order, or of none (None or an empty list); wait for the answer.

        raw: send the question as it is, without the question template. min_pixels, max_pixels: override the
        checkpoint's limits on the resized image. view: how DICOM files are shown. Raises `InputError`, before any work,
        for an image, a question or a limit that will not do.
        """
        stream = self.stream(
            image, question, decoding, raw=raw, min_pixels=min_pixels, max_pixels=max_pixels, view=view
        )
        return stream.finish()

    def stream(
        self,
        image: Images,
        question: str,
        decoding: Decoding = DEFAULT_DECODING,
        *,
        raw: bool = False,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        view: View = DEFAULT_VIEW,
    ) -> Stream:
        """As `ask`, but yields the text as it comes; the stream's `answer` is there at its end."""
        started = time.perf_counter()
        request = self.processor.prepare(
            _as_list(image), question, raw=raw, min_pixels=min_pixels, max_pixels=max_pixels, view=view
        )
        return self.run(request, decoding, preprocess_s=time.perf_counter() - started)

    def ask_batch(
        self,
        images_and_questions: Sequence[tuple[Images, str]],
        decoding: Decoding = DEFAULT_DECODING,
        *,
        batch_size: int | None = None,
        raw: bool = False,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        view: View = DEFAULT_VIEW,
    ) -> list[Answer]:
        """As `ask` for each, several decoded together; the answers in the order of the questions.

        batch_size: how many are decoded together, by default as `answer_batch` says. All images are decoded before any
        work, so that one that will not do refuses all: give some hundreds at a time.
        """
        requests, seconds = [], []
        for image, question in images_and_questions:
            started = time.perf_counter()
            request = self.processor.prepare(
                _as_list(image), question, raw=raw, min_pixels=min_pixels, max_pixels=max_pixels, view=view
            )
            requests.append(request)
            seconds.append(time.perf_counter() - started)
        return answer_batch(self, requests, decoding, batch_size=batch_size, preprocess_s=seconds)

    def run(
        self, request: Request, decoding: Decoding = DEFAULT_DECODING, *, preprocess_s: float = 0.0, vote: int = 0
    ) -> Stream:
        """Answer a prepared request; `preprocess_s` is the time that preparing it took, for the timings.

        vote: a number that makes this sample independent of others with the same seed.
        """
        check_fit(request, self.max_length)
        self.end_stream()
        self._stream = Stream(
            request,
            partial(self._generate, request, decoding, vote),
            load_s=self.load_s,
            preprocess_s=preprocess_s,
            record=self.recording(request, decoding, vote),
        )
        return self._stream

    def recording(self, request: Request, decoding: Decoding, vote: int) -> Record:
        """What notes the end of an answer in the audit log, where there is one."""
        if self._recorder is None:
            return lambda outcome, seconds, answer: None
        return partial(self._recorder.record, request, decoding, vote)

    def score(self, request: Request, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """What the model would say at each token of a given answer: logits [tokens, vocab_size].

        token_ids: an answer of at least one token. Row 0 follows the prompt, row i follows the answer's token i - 1:
        row i is what token i is drawn from ("teacher forcing"). Raises `InputError` for an answer that does not fit
        behind the prompt.
        """
        check_fit(request, self.max_length)
        vocab_size, fed = self.manifest.text.vocab_size, token_ids[:-1]
        if not token_ids or len(request.token_ids) + len(fed) > self.max_length:
            raise InputError(
                f"the answer has {len(token_ids)} tokens, the prompt {len(request.token_ids)}, and the context holds "
                f"{self.max_length}; give at least one token, and no more than fit"
            )
        if not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
            raise InputError(f"the answer has a token that is not in the vocabulary of {vocab_size}; give other tokens")
        self.end_stream()
        logits = np.empty((len(token_ids), vocab_size), np.float32)
        decoder, logits[0] = self.prefill.fill(request, len(fed), Progress(Clock()))
        reporting = _Reporting(decoder, self.gpu)
        for start in range(0, len(fed), _SCORED_AT_ONCE):
            piece = fed[start : start + _SCORED_AT_ONCE]
            logits[start + 1 : start + 1 + len(piece)] = [np.asarray(row) for row in reporting.extend(piece)]
        return logits

    def embeddings(self, token_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """The embeddings [tokens, hidden_size] of text [tokens]."""
        return self._embeddings.rows(token_ids)

    def new_sequence(self) -> AnyDecoder:
        """A sequence of its own over this model's sessions."""
        return self._new_sequence()

    def end_stream(self) -> None:
        """End the stream that is being read, if one is: the caches are wanted for something else."""
        if self._stream is not None:
            self._stream.replace()

    def free_slots(self, request: Request, decoding: Decoding) -> int:
        """How many tokens the answer may put into the cache behind its prompt."""
        return min(decoding.max_new_tokens, self.max_length - len(request.token_ids))

    def batch_decoder(self, sequences: int, capacity: int, lag: int) -> BatchDecoder:
        """A decoder for several sequences; see there."""
        return BatchDecoder(self._sessions.decode, self._embeddings, self.manifest.text, sequences, capacity, lag)

    def generation(
        self,
        request: Request,
        decoding: Decoding,
        vote: int,
        logits: Logits,
        progress: Progress,
        *,
        one_by_one: bool = False,
    ) -> Generation:
        """The answer after a prompt with these logits [vocab_size]; its form and its drafts noted in `progress`.

        one_by_one: without drafts, and with a token a call. So it is on a GPU, where a call of one token is captured,
        and one of several unpacks all weights.
        """
        one_by_one = one_by_one or self.device != "cpu"
        free_slots = self.free_slots(request, decoding)
        progress.form = self._form(request, decoding, free_slots)
        if decoding.max_draft and not one_by_one:
            ids = request.token_ids
            progress.lookup = PromptLookup(ids, decoding.max_draft, ignored=self.manifest.image_token_id)
        return generate(
            logits,
            Sampler(decoding.sampling, request.token_ids, vote),
            tokenizer=self.processor.tokenizer,
            limits=Limits(self.manifest.generation.eos_token_ids, decoding.max_new_tokens, free_slots),
            form=progress.form,
            lookup=progress.lookup,
            one_by_one=one_by_one,
        )

    def _generate(self, request: Request, decoding: Decoding, vote: int, progress: Progress) -> Iterator[Token]:
        """The tokens of an answer by itself."""
        decoder, logits = self.prefill.fill(request, self.free_slots(request, decoding), progress)
        progress.graph_seconds = lambda: decoder.graph_s
        return generate_alone(self.generation(request, decoding, vote, logits, progress), _Reporting(decoder, self.gpu))

    def _form(self, request: Request, decoding: Decoding, free_slots: int) -> AnswerForm | None:
        """What the answer must look like; None where the question has no options, or there is no room for an answer."""
        room = min(decoding.max_new_tokens, free_slots + 1) - ending_tokens(self.processor.tokenizer)
        if not (decoding.constrained and request.options) or room < 0:
            return None
        think_tokens = room if decoding.think_tokens is None else min(room, decoding.think_tokens)
        return AnswerForm(
            self.processor.tokenizer, list(request.options), self.manifest.generation.eos_token_ids, think_tokens
        )


class _Reporting:
    """A decoder whose failures are one line."""

    def __init__(self, decoder: AnyDecoder, gpu: Accelerator | None) -> None:
        self._decoder, self._gpu = decoder, gpu
        self.rewind = decoder.rewind

    def extend(self, token_ids: Sequence[int]) -> Rows:
        """As `Decoder.extend`."""
        with one_line_failures("decode", self._gpu):
            return self._decoder.extend(token_ids)


def check_threads(threads: int | None) -> int | None:
    """`threads` as it is. Raises `InputError` for a number that no machine like this needs."""
    if threads is not None and not 1 <= threads <= (os.cpu_count() or 1) * 4:
        raise InputError(f"threads is {threads}; give 1 to {(os.cpu_count() or 1) * 4}")
    return threads


def _as_list(image: Images) -> list[ImageSource | LoadedImage]:
    if image is None:
        return []
    return list(image) if isinstance(image, list | tuple) else [image]  # type: ignore[list-item]
