from stages.entry import stage_main
from stages.tracking.commands import main

if __name__ == "__main__":
    stage_main(main, arguments=True)
