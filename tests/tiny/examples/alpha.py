# %% [markdown]
# # Alpha: is there a margin?
#
# It measures $m > 0$.

# %%
from lab.record import write


# %%
def main() -> None:
    """Draws with figure("margin", ...)."""
    write("alpha", {"margin": [1.0, 2.0, 3.0], "second": [-1.0, 1.0, 1.0]})


if __name__ == "__main__":
    main()
