"""How the models of scenes and of Fashion-MNIST are trained: on a GPU in minutes, side by side, from run to run."""
