import numpy as np
import torch
from corpus import Blocks, source_files
from model import GPT, Shape, loss_per_example

SHAPE = Shape(block=16, layers=1, heads=2, width=16)


def test_a_block_asks_for_the_byte_that_follows() -> None:
    train = Blocks("train", block=32, every=64)
    x, y = train[5]
    assert x.shape == y.shape == (32,)
    assert torch.equal(x[1:], y[:-1])
    assert bytes(torch.cat([x, y[-1:]]).tolist()) == train.blocks[5].tobytes()


def test_the_text_is_the_same_every_time_and_large_enough_to_train_on() -> None:
    first, again = (Blocks("train", block=64, every=16) for _ in range(2))
    assert first.fingerprint() == again.fingerprint()
    assert len(first) > 3000


def test_held_out_text_is_of_other_files() -> None:
    texts = {split: Blocks(split, block=64, every=4).blocks for split in ("train", "held-out")}
    share = len(texts["held-out"]) / (len(texts["train"]) + len(texts["held-out"]))
    assert 0.02 < share < 0.25
    blocks = {split: {row.tobytes() for row in rows} for split, rows in texts.items()}
    # What they share is what files share: licences, blanks, tables.
    assert len(blocks["held-out"] & blocks["train"]) < 0.05 * len(blocks["held-out"])
    assert source_files() == sorted(set(source_files()), key=lambda path: path.as_posix())


def test_a_prediction_does_not_see_what_comes_after_it() -> None:
    torch.manual_seed(0)
    model = GPT(SHAPE)
    text = torch.randint(256, (2, 16))
    changed = text.clone()
    changed[:, 10] = (changed[:, 10] + 1) % 256
    before, after = model(text), model(changed)
    assert torch.allclose(before[:, :10], after[:, :10], atol=1e-6)
    assert not torch.allclose(before[:, 10:], after[:, 10:], atol=1e-3)


def test_the_loss_of_an_example_is_the_mean_over_its_bytes() -> None:
    torch.manual_seed(0)
    model = GPT(SHAPE)
    x, y = torch.randint(256, (2, 3, 16))
    log_probability = torch.log_softmax(model(x), dim=-1)
    by_hand = [
        -np.mean([log_probability[b, t, y[b, t]].item() for t in range(16)])  # one byte at a time
        for b in range(3)
    ]
    assert np.allclose(loss_per_example(model, x, y).tolist(), by_hand, atol=1e-5)
