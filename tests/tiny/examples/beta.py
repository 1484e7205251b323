# %% [markdown]
# # Beta: came first?

# %%
from lab import extra, record

if __name__ == "__main__":
    record.write("beta", {"first": extra.VALUES})
