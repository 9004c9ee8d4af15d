"""`python -m fairface_synth`, and so `torchrun … -m fairface_synth`: the command line."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="fairface-synth")
