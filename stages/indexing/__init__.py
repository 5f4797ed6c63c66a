"""The parts of the stage index: vectors of pictures, and the engines that search them."""
