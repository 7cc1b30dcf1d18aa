"""How often `compare`'s 95 % interval holds the truth, when the truth is known; beside it the nested bootstrap.

    python benchmarks/compare_coverage.py --simulations 600

A difference is an image's own (sd .15, the same under every seed) plus a training's own (sd as given) plus noise (sd
.05); the truth is 0. "Nested" draws the images anew within each seed, as a hierarchical bootstrap is often written.
"""

import argparse

import numpy as np

from segdistill.metrics.paired import paired_differences

SETTINGS = ((1, 100, 0.0), (3, 100, 0.02), (5, 100, 0.02), (5, 100, 0.1), (3, 200, 0.1), (5, 200, 0.1))
RESAMPLES = 1000


def differences(rng, seeds, images, training):
    own = rng.normal(0, 0.15, images)
    return own + rng.normal(0, training, (seeds, 1)) + rng.normal(0, 0.05, (seeds, images))


def crossed(values, number):
    seeds, images = values.shape
    column = values.reshape(-1, 1)
    seed_of, group = np.repeat(np.arange(seeds), images), np.tile(np.arange(images), seeds)
    zero = np.zeros_like(column)
    (found,) = paired_differences(zero, column, seed_of=seed_of, group=group, resamples=RESAMPLES, seed=number)
    return found.low, found.high


def nested(values, rng):
    seeds, images = values.shape
    drawn = rng.integers(0, seeds, (RESAMPLES, seeds))
    weights = rng.multinomial(images, [1 / images] * images, size=(RESAMPLES, seeds)) / images
    means = np.einsum("rsi,rsi->r", weights, values[drawn]) / seeds
    return tuple(np.percentile(means, (2.5, 97.5)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=600)
    given = parser.parse_args()
    print(f"{given.simulations} simulations, {RESAMPLES} resamples: share of intervals that hold the truth")
    print("seeds  images  training sd   crossed  nested")
    for seeds, images, training in SETTINGS:
        rng = np.random.default_rng(0)
        held = np.zeros(2)
        for number in range(given.simulations):
            values = differences(rng, seeds, images, training)
            intervals = crossed(values, number), nested(values, rng)
            held += [low <= 0 <= high for low, high in intervals]
        share = 100 * held / given.simulations
        print(f"{seeds:5} {images:7} {training:12.2f} {share[0]:8.1f} % {share[1]:6.1f} %", flush=True)


if __name__ == "__main__":
    main()
