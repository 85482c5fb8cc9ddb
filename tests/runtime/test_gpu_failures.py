"""What goes wrong on a GPU while a model is in use: memory that lacks, kernels that fail, threads that come and go."""

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support import cuda_artifact, fake_cuda
from support.tiny_gpu_program import BLOCK, PLAN, V, expected, weights

from llmc.errors import ArtifactRejected, BadRequest, DeviceFailed, OutOfMemory
from llmc.runtime.artifact import Artifact
from llmc.runtime.cuda.cuda_device import CudaDevice
from llmc.runtime.cuda.device import Place
from llmc.runtime.cuda.open_session import open_cuda_session
from llmc.runtime.cuda.program import GpuProgram
from llmc.runtime.manifest import ModelFacts, Ranges
from llmc.runtime.sample import SamplingParams
from llmc.runtime.session import Session

PROMPTS = [[1, 2, 3], [4], [5, 6, 0, 1]]
SHORT, LONG = SamplingParams(max_new_tokens=4), SamplingParams(max_new_tokens=40)
HELD = ("bytes", "streams", "events", "modules", "graphs", "pinned", "contexts", "recordings")


def fail(*, allocation: int = -1, launch: int = -1) -> None:
    """Let the driver refuse an allocation from now on, or a kernel fail, counted from 0."""
    fake_cuda.library().fake_fail(allocation, launch)


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """Whatever failed, all is given back in the end."""
    gc.collect()
    before = fake_cuda.counts()
    yield
    fail()
    gc.collect()
    assert {name: fake_cuda.counts()[name] for name in HELD} == {name: before[name] for name in HELD}


def make() -> Session:
    program = GpuProgram(PLAN, fake_cuda.device(), weights())
    return Session(program, ModelFacts(V), Ranges(tokens=64, sequences=4, context=64), block_size=BLOCK)


def generates(session: Session, params: SamplingParams) -> None:
    """Check what it says."""
    for prompt, result in zip(PROMPTS, session.generate(PROMPTS, params), strict=True):
        tokens = list(prompt)
        for token in result.token_ids:
            assert token == expected(tokens)[-1].argmax()
            tokens.append(token)


def test_memory_may_lack_at_any_point_of_opening_a_program() -> None:
    for place in range(100):
        fail(allocation=place)
        try:
            make()
        except OutOfMemory as error:
            assert "memory" in str(error)
            assert "nvidia-smi" in str(error)
        else:
            break
    assert place > 3


def test_an_artifact_that_cannot_be_opened_leaves_nothing(tmp_path: Path) -> None:
    """Memory lacks at any point, or the weights are damaged; neither memory stays nor a thread that reads."""
    path = cuda_artifact.write(tmp_path / "a")

    def opened() -> Session:
        artifact = Artifact.open(path, verify="fast")
        return open_cuda_session(artifact, cache=tmp_path, trust=True, library=fake_cuda.library()._name)

    before = threading.active_count()
    for place in range(100):
        fail(allocation=place)
        try:
            opened()
        except OutOfMemory as error:
            assert "nvidia-smi" in str(error)
        else:
            break
    assert place > 3
    fail()
    weights_file = path / "weights.safetensors"
    content = bytearray(weights_file.read_bytes())
    content[-1] ^= 1
    weights_file.write_bytes(content)
    with pytest.raises(ArtifactRejected, match="damaged"):
        opened()
    assert threading.active_count() == before


def test_memory_may_lack_at_any_point_of_a_generation_and_be_there_for_the_next() -> None:
    """Caches, arrays of steps, recordings: when it is refused, nothing is left halfway."""
    for place in range(100):
        session = make()
        fail(allocation=place)
        try:
            generates(session, SHORT)
            generates(session, LONG)
        except (OutOfMemory, BadRequest) as error:
            assert "memory" in str(error)
        else:
            break
        finally:
            fail()
        assert session.blocks_in_use == 0
        generates(session, SHORT)
        generates(session, LONG)
    assert place > 3


def test_memory_may_lack_for_the_first_arrays_of_a_batch_and_be_there_for_the_next() -> None:
    """The block table of more columns is refused; one of fewer is asked for after that."""
    session = make()
    generates(session, SHORT)
    graphs = session.program._graphs  # type: ignore[attr-defined]
    fail(allocation=0)
    with pytest.raises(OutOfMemory):
        graphs._bucket(4, 1000)
    fail()
    generates(session, SHORT)


def test_a_kernel_may_fail_at_any_point_of_a_generation(capfd: pytest.CaptureFixture[str]) -> None:
    """The context is lost then. A program that is opened after it is gone has another."""
    for place in range(0, 100, 7):
        session = make()
        fail(launch=place)
        with pytest.raises(DeviceFailed, match=r"LAUNCH_FAILED \(as a test wants it\); start again"):
            generates(session, LONG)
        assert session.blocks_in_use == 0
        with pytest.raises(DeviceFailed, match="LAUNCH_FAILED"):
            generates(session, SHORT)
        del session
        gc.collect()
        fail()
        generates(make(), SHORT)
    assert capfd.readouterr().err == "", "what cannot be given back is not worth a word"


def test_threads_that_come_and_go_use_one_program() -> None:
    """Their identifiers are used again; their contexts are not."""
    session = make()
    identifiers, failed = set[int](), list[BaseException]()

    def work() -> None:
        identifiers.add(threading.get_ident())
        try:
            generates(session, SHORT)
        except BaseException as error:
            failed.append(error)

    for _ in range(20):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert failed == []
    assert len(identifiers) < 20, "no identifier was used again: this test tells nothing here"


def test_a_recording_that_is_interrupted_leaves_the_stream_usable() -> None:
    device = fake_cuda.device()
    memory = device.allocate(64)

    def record() -> None:
        device.copy(Place(memory, 0), Place(memory, 32), 32)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        device.capture(record)
    works(device)


def test_a_recording_that_the_driver_refuses_is_named_by_what_it_refused() -> None:
    device = fake_cuda.device()
    with pytest.raises(DeviceFailed, match=r"^cuStreamSynchronize: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"):
        device.capture(device.synchronize)
    works(device)


def works(device: CudaDevice) -> None:
    """Copies go there and back."""
    memory, back = device.allocate(16), np.zeros(4, np.int32)
    device.upload(Place(memory, 0), np.arange(4, dtype=np.int32))
    device.download(Place(memory, 0), back)
    assert back.tolist() == [0, 1, 2, 3]
