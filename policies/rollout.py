"""The rollout engine: vLLM in this process, answering batches of requests. A plain class; its Ray actor is thin."""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, Literal, ParamSpec

from policies.root_cause import points_elsewhere, with_root_cause
from policies.types import Rollout, RolloutRequest
from policies.weight_sync import Transport

BATCHED_TOKENS = 8192  # of a step of vLLM's, prompts' and completions' together; as its server has them
_LOOK_EVERY_S = 0.5
_GATHER_S = 0.02  # a message for every decoding step costs more than the step where the policy is small
_SIGN_EVERY_S = 1.0  # of life, where no rollout ends
_REMEMBERED = 256  # streams that were withdrawn, as some may have ended and others have yet to begin


P = ParamSpec("P")
Phase = Callable[Concatenate["RolloutEngine", P], Coroutine[Any, Any, None]]


class EngineDied(RuntimeError):
    """vLLM's own process is gone."""


class StaleEngineError(RuntimeError):
    """The engine's weights are unknown: a weight update started and did not finish."""


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Plain constants of an engine; see the job spec for their meaning."""

    model: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    seed: int = 0
    max_model_len: int | None = None
    max_num_seqs: int = 256
    kv_cache_gib: float = 1.0
    gpu_memory_utilization: float = 0.4
    tensor_parallel: int = 1
    prefix_caching: bool = True
    enforce_eager: bool = False
    transport: Transport = "shared_memory"
    sleep: bool = False
    timeout_s: float = 1800.0
    stall_s: float = 120.0


def phase(method: Phase[P]) -> Phase[P]:
    """Of a weight update. Why one failed is kept, as the learner may wait for the engine in an exchange, and hear
    nothing of what its call raised."""

    @functools.wraps(method)
    async def kept(self: RolloutEngine, /, *arguments: P.args, **named: P.kwargs) -> None:
        try:
            await method(self, *arguments, **named)
        except Exception as error:  # vLLM raises whatever its worker did; it is told here and raised on
            self.broken = " ".join(str(error).split()) or type(error).__name__
            raise

    return kept


def vllm_arguments(settings: EngineSettings) -> dict[str, Any]:
    """Of an engine, for vLLM's EngineArgs."""
    on_cpu = settings.device == "cpu"
    # vLLM's own default for an engine in a program is 2048 tokens a step: too few to prefill beside many that decode,
    # and it refuses more sequences than that.
    arguments: dict[str, Any] = {
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "max_num_batched_tokens": max(BATCHED_TOKENS, settings.max_num_seqs),
    }
    if on_cpu:
        # A prompt that is prefilled in parts makes vLLM rewind the request's generator, which CPU generators can't.
        arguments = {
            "kv_cache_memory_bytes": int(settings.kv_cache_gib * 2**30) // settings.tensor_parallel,  # of each rank
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(BATCHED_TOKENS, settings.max_model_len or 0),
        }
    if settings.tensor_parallel > 1:
        arguments["distributed_executor_backend"] = "mp"  # in a placement group vLLM would hand its ranks to Ray
    if settings.max_model_len is not None:
        arguments["max_model_len"] = settings.max_model_len
    return arguments | {
        "model": settings.model,
        "revision": settings.revision,
        "dtype": settings.dtype,
        "seed": settings.seed,
        "max_num_seqs": settings.max_num_seqs,
        "tensor_parallel_size": settings.tensor_parallel,
        "enable_prefix_caching": settings.prefix_caching,
        "enforce_eager": settings.enforce_eager or on_cpu,
        "enable_sleep_mode": settings.sleep and not on_cpu,
        "trust_remote_code": False,
        "load_format": "safetensors",
        # What the learner reads, also where Mistral's own formats stand beside it, which vLLM would prefer.
        "config_format": "hf",
        "tokenizer_mode": "hf",
        "logprobs_mode": "processed_logprobs",  # of the distribution that was sampled from
        "disable_log_stats": True,
        "generation_config": "vllm",  # no hidden sampling defaults from the model's directory
    }


class RolloutEngine:
    """Samples completions under known weights.

    The same requests in the same order under the same weights give the same rollouts: requests are queued while the
    scheduler is paused, so that the batches it forms do not depend on when each request arrives. With stop
    texts they do as far as batches of other sizes round alike: those are found outside of the scheduler, which may
    decode a token more before it hears.
    """

    broken: str | None = None  # by a weight update, which failed

    def __init__(self, settings: EngineSettings) -> None:
        if settings.transport == "ipc":
            _allow_handles()

        from vllm import AsyncEngineArgs
        from vllm.config import WeightTransferConfig
        from vllm.v1.engine.async_llm import AsyncLLM

        self.settings = settings
        transfer = WeightTransferConfig(backend=settings.transport)
        engine = AsyncEngineArgs(weight_transfer_config=transfer, **vllm_arguments(settings))
        try:
            self.llm = AsyncLLM.from_engine_args(engine)
        except RuntimeError as error:
            if not points_elsewhere(error):
                raise
            raise RuntimeError(with_root_cause(error)) from error
        self.policy_version = 0
        self.stale = False
        self.resting = False
        self._ids = itertools.count()
        self._calls: dict[str, dict[asyncio.Future[Any], int]] = {}  # what each stream still waits for
        self._heard = 0.0  # when a rollout ended last, of whichever stream
        self._withdrawn: deque[str] = deque(maxlen=_REMEMBERED)
        self._gate = asyncio.Lock()  # one at a time pauses and resumes the scheduler

    async def generate(self, requests: Sequence[RolloutRequest]) -> list[Rollout]:
        """One rollout for each request, in order. Raises as `stream`."""
        found = {place: rollout async for ended in self.stream(requests) for place, rollout in ended}
        return [found[place] for place in range(len(requests))]

    async def stream(
        self, requests: Sequence[RolloutRequest], call: str | None = None
    ) -> AsyncIterator[list[tuple[int, Rollout]]]:
        """Rollouts with their requests' places, as they end: those that end at about one time are handed over together.

        An empty list in between says that tokens were made, about once a second. When they are taken has no influence
        on what they are. `call` names the stream to `withdraw`, which ends it. Raises StaleEngineError where a weight
        update did not finish, TimeoutError where no rollout ends for settings.timeout_s, EngineDied.
        """
        names = [f"{next(self._ids)}" for _ in requests]
        call = call or f"unnamed {next(self._ids)}"
        waiting = self._calls[call] = {}
        over = False
        try:
            if call not in self._withdrawn:
                queues = await self._queue(names, requests)
                waiting |= {asyncio.ensure_future(_finished(queue)): place for place, queue in enumerate(queues)}
            made, began = -1, time.monotonic()
            while waiting and call not in self._withdrawn:
                left_s = max(began, self._heard) + self.settings.timeout_s - time.monotonic()
                if left_s <= 0:
                    raise TimeoutError
                wait_s = min(left_s, _SIGN_EVERY_S)
                done = await _ended(waiting, wait_s)
                if call in self._withdrawn:
                    break
                before, made = made, self._tokens_under_way() if not done else -1
                if not done and made == before:
                    continue
                self._heard = time.monotonic() if done else self._heard
                ended = sorted(((waiting.pop(task), task.result()) for task in done), key=lambda pair: pair[0])
                texts = self._texts([(requests[place], output.outputs[0]) for place, output in ended])
                yield [
                    (place, _rollout(requests[place], output, text))
                    for (place, output), text in zip(ended, texts, strict=True)
                ]
            over = not waiting
        except BaseException as error:
            if _is_death(error):
                raise EngineDied(with_root_cause(error)) from error
            raise
        finally:
            del self._calls[call]
            if not over:  # vLLM is to forget them
                for task in waiting:
                    task.cancel()
                await self.llm.abort(names)

    async def withdraw(self, call: str) -> None:
        """Ends a stream, or one that has yet to begin, with what has ended of it."""
        self._withdrawn.append(call)
        for task in self._calls.get(call, ()):
            task.cancel()

    def _texts(self, ended: Sequence[tuple[RolloutRequest, Any]]) -> list[str]:
        tokenizer: Any = self.llm.get_tokenizer()
        return [_text(tokenizer, request, completion) for request, completion in ended]

    async def _queue(self, names: Sequence[str], requests: Sequence[RolloutRequest]) -> list[Any]:
        """All requests at once, while the scheduler is paused."""
        from vllm.inputs.engine import tokens_input

        async with self._gate:
            if self.stale:
                raise StaleEngineError("this engine's weights are mixed or unknown; send it the weights again")
            assert not self.resting
            await self._pause(clear_cache=False)
            try:
                queues = []
                for name, request in zip(names, requests, strict=True):
                    prompt = tokens_input(list(request.prompt_tokens))
                    queues.append(await self.llm.add_request(name, prompt, _sampling(request)))
                return queues
            finally:
                await self._call(self.llm.resume_generation())

    async def _pause(self, *, clear_cache: bool) -> None:
        """Requests stay where they are until the scheduler goes on.

        vLLM's own `pause_generation` sleeps for 20 ms more, for outputs that nobody here waits for, and empties a cache
        of images, which our prompts have none of.
        """
        await self._call(self.llm.engine_core.pause_scheduler_async(mode="keep", clear_cache=clear_cache))

    def _tokens_under_way(self) -> int:
        """Of completions that have not ended; it changes where any engine step made one."""
        states = self.llm.output_processor.request_states.values()
        return sum(state.detokenizer.num_output_tokens() for state in states if state.detokenizer is not None)

    async def _call(self, call: Coroutine[Any, Any, Any]) -> None:
        """Something that vLLM's own process is to do and to confirm. Raises EngineDied where it ends before that.

        vLLM tells only those of its death who wait for completions; all others would wait for ever.
        """
        task = asyncio.ensure_future(call)
        try:
            while not (await asyncio.wait([task], timeout=_LOOK_EVERY_S))[0]:
                if self.llm.errored:
                    raise EngineDied(with_root_cause("vLLM's process ended before it answered"))
            task.result()
        except BaseException as error:
            task.cancel()
            if _is_death(error):
                raise EngineDied(with_root_cause(error)) from error
            raise

    @phase
    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self._call(self.llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info)))

    @phase
    async def start_weight_update(self) -> None:
        """From here until `finish_weight_update` the weights are mixed."""
        async with self._gate:
            assert not self.resting  # vLLM's weights are not where they would be written
            self.stale = True
            await self._pause(clear_cache=True)
        await self._call(self.llm.start_weight_update())

    @phase
    async def update_weights(self, update_info: Any) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        await self._call(self.llm.update_weights(WeightTransferUpdateRequest(update_info=update_info)))

    @phase
    async def finish_weight_update(self, weight_version: str | None = None) -> None:
        await self._call(self.llm.finish_weight_update(weight_version))
        if weight_version is not None:
            self.policy_version = int(weight_version)
        self.stale = False
        await self._call(self.llm.resume_generation())

    async def rest(self) -> bool:
        """Gives a GPU's memory up until it is to `rise`: weights wait on the host, the cache is dropped."""
        async with self._gate:
            self.resting = True
            await self._call(self.llm.sleep(level=1))
        return True

    async def rise(self) -> bool:
        async with self._gate:
            await self._call(self.llm.wake_up())
            self.resting = False
        return True

    async def version(self) -> int | None:
        """Of the policy that it samples from; None where it is stale. Raises EngineDied."""
        if self.llm.errored:
            raise EngineDied(with_root_cause("vLLM's process ended"))
        return None if self.stale else self.policy_version

    def close(self) -> None:
        self.llm.shutdown()


def _allow_handles() -> None:
    """Lets vLLM pickle what it sends to its own process: a GPU's handles hold types that it can't send otherwise.

    Without that no weight arrives by `ipc`. It is safe here: the two talk through a socket file of this machine's, and
    what is sent are the learner's handles, which came by Ray, pickled as well. Nobody from outside reaches either. Set
    in this process alone, before vLLM starts its own, and for no other transport.
    """
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"


def _is_death(error: BaseException) -> bool:
    from vllm.v1.engine.exceptions import EngineDeadError

    return isinstance(error, EngineDeadError)


def _sampling(request: RolloutRequest) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    greedy = request.seed is None
    return SamplingParams(
        max_tokens=request.max_tokens,
        temperature=0.0 if greedy else request.temperature,
        top_p=1.0 if greedy else request.top_p,
        top_k=0 if greedy else request.top_k,
        min_p=0.0 if greedy else request.min_p,
        seed=request.seed,
        logprobs=0,  # of the sampled token alone
        flat_logprobs=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
        stop=list(request.stop),
        detokenize=bool(request.stop),
        skip_clone=True,  # nobody else has it
    )


async def _finished(queue: Any) -> Any:
    while True:
        output = queue.get_nowait() or await queue.get()
        if output.finished:
            return output


async def _ended(waiting: Iterable[asyncio.Future[Any]], within_s: float) -> set[asyncio.Future[Any]]:
    """Once one has ended, with those that follow it closely; none where none does in time."""
    done, left = await asyncio.wait(waiting, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    if done and left:
        done |= (await asyncio.wait(left, timeout=_GATHER_S))[0]
    return done


def _text(tokenizer: Any, request: RolloutRequest, completion: Any) -> str:
    """Decoded at once, without its end: vLLM does it token by token, and again for the tokens' log-probabilities.

    It has to where it looks for stop texts, and then its text, cut before the one that ended it, is all requests'.
    """
    ended_by = completion.stop_reason
    if request.stop:
        text: str = completion.text
        return text + ended_by if request.include_stop and isinstance(ended_by, str) else text
    written = completion.token_ids[:-1] if completion.finish_reason == "stop" else completion.token_ids
    decoded: str = tokenizer.decode(list(written), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return decoded


def _rollout(request: RolloutRequest, output: Any, text: str) -> Rollout:
    completion = output.outputs[0]
    labels = [(span.version, span.end - span.start) for span in completion.weight_versions]
    # Before the first weight update vLLM's label is no number.
    spans = tuple((int(label) if label.isdigit() else 0, length) for label, length in labels if length)
    tokens = tuple(completion.token_ids)
    assert tuple(completion.logprobs.token_ids) == tokens  # one for each position
    return Rollout(
        prompt_tokens=request.prompt_tokens,
        tokens=tokens,
        logprobs=tuple(completion.logprobs.logprobs),
        text=text,
        truncated=completion.finish_reason == "length",
        policy_version=spans[0][0],
        version_spans=spans,
    )
