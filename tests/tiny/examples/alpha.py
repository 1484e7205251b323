# %% [markdown]
# # Alpha: is there a margin?
#
# It measures $m > 0$.

# %%
from lab.record import write


# %%
def main() -> None:
    """Draws with figure("margin", ...)."""
    write("alpha", {"margin": [1.0, 1.1, 1.2], "second": [-1.0, 1.0, 1.0], "control": [2.0, 2.1, 2.2]})


if __name__ == "__main__":
    main()
