"""What a reader takes home: how a checkpoint is loaded, and what it makes of a picture."""
