"""How the miniatures are trained: the data, the networks, a file a track, and the stages in order."""
