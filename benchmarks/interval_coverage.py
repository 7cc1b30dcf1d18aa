"""How often the 95 % interval of a mean Dice holds the truth, by the number of patients.

    python benchmarks/interval_coverage.py --simulations 1000

A Dice is .8, plus a patient's own difference (sd .1), plus an image's (sd .1), five images for each patient.
"""

import argparse

import numpy as np

from segdistill.metrics.bootstrap import bootstrap_interval

PATIENTS = (6, 10, 20, 40)
IMAGES = 5  # of each


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=1000)
    given = parser.parse_args()
    print("patients  holds the truth")
    for patients in PATIENTS:
        rng = np.random.default_rng(0)
        group = np.repeat(np.arange(patients), IMAGES)
        held = 0
        for number in range(given.simulations):
            dice = 0.8 + rng.normal(0, 0.1, patients)[group] + rng.normal(0, 0.1, len(group))
            low, high = bootstrap_interval(dice[:, None], group, resamples=2000, seed=number)
            held += bool(low[0] <= 0.8 <= high[0])
        print(f"{patients:8}  {100 * held / given.simulations:.1f} %", flush=True)


if __name__ == "__main__":
    main()
