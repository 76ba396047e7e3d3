/* The protocol of gala_mpi/exchange/mailbox.py, and of lock-step in gossip.py, for Spin. docs/transport.md explains it.

   As it stands: one writer publishes versions 1..V, one reader pulls them. Readers only read, so they cannot disturb each
   other, and what holds for one holds for any number.
   -DLOCKSTEP: RANKS ranks on a directed ring, each publishes and reads exactly version k at update k.

   spin -a [-DLOCKSTEP] [-D<FAULT>] [-DV=6 ...] docs/transport.pml && gcc -DSAFETY -o pan pan.c && ./pan

   Every payload word of version v is v, and so are LATEST and BEGUN. */

#ifndef SLOTS
#define SLOTS 2
#endif
#ifndef WORDS
#define WORDS 2		/* of a payload: 1, 2 or 3 */
#endif
#ifndef RANKS
#ifdef LOCKSTEP
#define RANKS 3		/* with 2 ranks that read each other the receipts say nothing new: see docs/transport.md */
#else
#define RANKS 1
#endif
#endif
#ifndef V
#ifdef LOCKSTEP
#define V 4
#else
#define V 6		/* every slot is rewritten twice */
#endif
#endif

#define NONE 255

/* Where things lie in a window. */
#define LATEST 0
#define BEGUN(version) (1 + (version) % SLOTS)
#define PAYLOAD(version, word) (1 + SLOTS + (version) % SLOTS * WORDS + (word))
#define MIXED (1 + SLOTS + SLOTS * WORDS)
#define FINISHED (MIXED + 1)
#define LATEST_HIGH (MIXED + 2)			/* SPLIT_WORDS alone */
#define CHECK(version) (MIXED + 3 + (version) % SLOTS)	/* CHECKSUM_IN_HEADER alone */
#define LOCATIONS (MIXED + 3 + SLOTS)

typedef Window {
	byte seen[LOCATIONS];	/* what gets see */
	byte stored[LOCATIONS];	/* what the owner has stored and gets do not see yet */
	byte unseen		/* how many of those there are */
};
Window window[RANKS];

/* Memory: stores to different locations become visible in any order, at any time. Those to one location keep theirs: a
   second store finds the first one already visible, which the assertion checks, so that room for one is enough. */

inline store(location, value) {
	assert(window[me].stored[location] == NONE);
	window[me].stored[location] = value;
	window[me].unseen++
}

#ifdef LAZY	/* nothing becomes visible before the owner calls Sync */
bool syncing[RANKS];
#define MAY_BE_SEEN syncing[owner]
#define sync() syncing[me] = true; atomic { window[me].unseen == 0 -> syncing[me] = false }
#else
#define MAY_BE_SEEN true
#define sync() (window[me].unseen == 0)
#endif

#define SHOW(location) \
	:: d_step { \
		location < LOCATIONS && window[owner].stored[(location) % LOCATIONS] != NONE && MAY_BE_SEEN -> \
		window[owner].seen[(location) % LOCATIONS] = window[owner].stored[(location) % LOCATIONS]; \
		window[owner].stored[(location) % LOCATIONS] = NONE; \
		window[owner].unseen-- \
	}

proctype Memory(byte owner) {
end:	do
	SHOW(0) SHOW(1) SHOW(2) SHOW(3) SHOW(4) SHOW(5) SHOW(6) SHOW(7) SHOW(8) SHOW(9) SHOW(10) SHOW(11) SHOW(12) SHOW(13)
	SHOW(14) SHOW(15) SHOW(16) SHOW(17)
	od
}

/* The writer. Stores between two Syncs are one step of the model: memory shows them in any order all the same. */

inline store_begun(version) {
	d_step { store(BEGUN(version), version) }
}

inline store_payload(version) {
	d_step {
		store(PAYLOAD(version, 0), version);
#if WORDS > 1
		store(PAYLOAD(version, 1), version);
#endif
#if WORDS > 2
		store(PAYLOAD(version, 2), version);
#endif
#ifdef CHECKSUM_IN_HEADER
		store(CHECK(version), version);
#endif
	}
}

inline store_latest(version) {
#ifdef SPLIT_WORDS	/* a word of two halves, read and written one by one */
	d_step { store(LATEST, version % 2); store(LATEST_HIGH, version / 2) }
#else
	d_step { store(LATEST, version) }
#endif
}

inline publish(version) {
#ifndef BEGUN_LATE
	store_begun(version);
#ifndef NO_SYNC_AFTER_BEGUN
	sync();
#endif
#endif
#ifdef LATEST_EARLY
	store_latest(version);
	sync();
#endif
	store_payload(version);
#ifndef NO_SYNC_AFTER_PAYLOAD
	sync();
#endif
#ifdef BEGUN_LATE
	store_begun(version);
	sync();
#endif
#ifndef LATEST_EARLY
	store_latest(version);
#ifndef NO_SYNC_AFTER_LATEST
	sync();
#endif
#endif
}

inline post(location, value) {
	d_step { store(location, value) }
	sync()
}

/* The reader. A get reads its words one by one in any order. Values read: NONE stands for "not yet". */

#define SEEN(location) window[source].seen[location]

inline forget() {
	d_step {
		word[0] = NONE;
#if WORDS > 1
		word[1] = NONE;
#endif
#if WORDS > 2
		word[2] = NONE;
#endif
		begun = NONE; next = NONE; check = NONE
	}
}

#if WORDS == 1
#define PAYLOAD_READ (word[0] != NONE)
#define WHOLE (word[0] == version)
#elif WORDS == 2
#define PAYLOAD_READ (word[0] != NONE && word[1] != NONE)
#define WHOLE (word[0] == version && word[1] == version)
#else
#define PAYLOAD_READ (word[0] != NONE && word[1] != NONE && word[2] != NONE)
#define WHOLE (word[0] == version && word[1] == version && word[2] == version)
#endif
#ifdef CHECKSUM_IN_HEADER
#define CHECK_READ (check != NONE)
#else
#define CHECK_READ true
#endif
#define SECOND_HEADER_READ (begun != NONE && next != NONE && CHECK_READ)

/* May the payload be read before the first header has been? May the second header be before the payload? */
#ifdef NO_SYNC_AFTER_HEADER
#define PAYLOAD_MAY_BE_READ true
#else
#define PAYLOAD_MAY_BE_READ (version != NONE)
#endif
#ifdef NO_SYNC_AFTER_GET
#define SECOND_HEADER_MAY_BE_READ true
#else
#define SECOND_HEADER_MAY_BE_READ PAYLOAD_READ
#endif

#define READ_WORD(i) :: d_step { PAYLOAD_MAY_BE_READ && word[i] == NONE -> word[i] = SEEN(PAYLOAD(slot, i)) }

#ifdef LOCKSTEP

byte last[RANKS];	/* each rank's last update */

proctype Rank(byte me) {
	byte version = 1, source, reader, slot, begun, next, check, word[WORDS];

	d_step {
		source = (me + RANKS - 1) % RANKS;
		reader = (me + 1) % RANKS
	}
	do
	:: version > last[me] -> break
	:: else ->
		/* _wait_for_readers. A header that says nothing new changes nothing: waiting for one that does is the same. */
#ifdef RECEIPT_TOO_NEW
		(window[reader].seen[MIXED] >= version || window[reader].seen[FINISHED]);
#elif !defined(NO_RECEIPT)
		if
		:: version > SLOTS -> (window[reader].seen[MIXED] >= version - SLOTS || window[reader].seen[FINISHED])
		:: else
		fi;
#endif
		publish(version);
#ifdef RECEIPT_EARLY
		post(MIXED, version);
#endif
ask:		if
		:: SEEN(LATEST) >= version ->
			forget();
			slot = version;
			do
			READ_WORD(0)
#if WORDS > 1
			READ_WORD(1)
#endif
#if WORDS > 2
			READ_WORD(2)
#endif
			:: d_step { SECOND_HEADER_MAY_BE_READ && begun == NONE -> begun = SEEN(BEGUN(version)) }
			:: PAYLOAD_READ && begun != NONE -> break
			od;
			assert(begun == version);	/* nothing is ever thrown away */
			assert(WHOLE)
		/* _exhausted */
#ifdef FINISHED_IS_A_FLAG	/* it would say "LATEST is my last version"; but the words of a header are read one by one */
		:: SEEN(LATEST) < version ->
			if
			:: SEEN(FINISHED) != 0 -> assert(version > last[source])
			:: else -> goto ask
			fi
#else
		:: SEEN(FINISHED) != 0 && SEEN(FINISHED) <= version ->
			assert(version > last[source])	/* what there is does not remain unread */
#endif
		fi;
#ifndef RECEIPT_EARLY
		post(MIXED, version);
#endif
		version++
	od;
	post(FINISHED, last[me] + 1)
}

#else

proctype Writer(byte me) {
	byte version = 1;

	do
	:: version > V -> break
	:: else -> publish(version); version++
	od
}

/* Judging by the second header. */
#if defined(NO_BEGUN_CHECK)
#define ACCEPTED true
#elif defined(LATEST_JUDGES_LATE)	/* "version + SLOTS is not finished" */
#define ACCEPTED (next < version + SLOTS)
#elif defined(LATEST_JUDGES)	/* "version + SLOTS - 1 is not finished, so that version + SLOTS has not begun" */
#define ACCEPTED (next < version + SLOTS - 1)
#else
#define ACCEPTED (begun == version)
#endif

proctype Reader(byte source) {
	byte mixed, version = NONE, slot, begun, next, check, word[WORDS];
#ifdef SPLIT_WORDS
	byte low, high;
#endif

	do
	:: mixed == V -> break	/* none but the last message ends the reader: a reader that is stuck is an invalid end state */
	:: mixed != V ->
		forget();
#ifdef NO_SYNC_AFTER_HEADER
		if
		:: slot = 0
		:: slot = 1
		fi;
#endif
		do
		/* The first header, of which only LATEST is used. One that brings nothing newer changes nothing. */
#ifdef SPLIT_WORDS
		:: version == NONE ->
			if
			:: low = SEEN(LATEST); high = SEEN(LATEST_HIGH)
			:: high = SEEN(LATEST_HIGH); low = SEEN(LATEST)
			fi;
			d_step {
				if
				:: 2 * high + low > mixed -> version = 2 * high + low; slot = version % SLOTS
				:: else
				fi;
				low = 0; high = 0
			}
#else
		:: d_step {
			version == NONE && SEEN(LATEST) > mixed ->
			version = SEEN(LATEST);
#ifndef NO_SYNC_AFTER_HEADER
			slot = version % SLOTS
#endif
			}
#endif
		READ_WORD(0)
#if WORDS > 1
		READ_WORD(1)
#endif
#if WORDS > 2
		READ_WORD(2)
#endif
		/* The second header: BEGUN judges this message, LATEST may be that of the next one. */
		:: d_step { SECOND_HEADER_MAY_BE_READ && version != NONE && begun == NONE -> begun = SEEN(BEGUN(version)) }
		:: d_step { SECOND_HEADER_MAY_BE_READ && version != NONE && next == NONE -> next = SEEN(LATEST) }
#ifdef CHECKSUM_IN_HEADER
		:: d_step { SECOND_HEADER_MAY_BE_READ && version != NONE && check == NONE -> check = SEEN(CHECK(version)) }
#endif
		:: version != NONE && PAYLOAD_READ && SECOND_HEADER_READ -> break
		od;
#ifdef NO_SYNC_AFTER_HEADER
		if
		:: slot == version % SLOTS
		:: else -> goto end	/* no machine reads another slot than it was told: not a run */
		fi;
#endif
		if
		:: ACCEPTED ->
			assert(WHOLE);
			assert(version > mixed);
#ifdef CHECKSUM_IN_HEADER
			assert(check == version);	/* the checksum is that of this message */
#endif
			d_step { mixed = version; version = NONE }
		:: else ->
#if !defined(LATEST_JUDGES) && !defined(LATEST_JUDGES_LATE) && !defined(SPLIT_WORDS)
			assert(begun > version);	/* only what has been rewritten is thrown away: a writer at rest harms nobody */
#endif
#ifdef SPLIT_WORDS
			version = NONE
#else
			d_step {
				if
				:: next > mixed -> version = next; slot = version % SLOTS
				:: else -> version = NONE
				fi
			}
#endif
		fi
	od;
end:	skip
}

#endif

init {
	byte i, l;

	d_step {
		for (i : 0 .. RANKS - 1) {
			for (l : 0 .. LOCATIONS - 1) {
				window[i].stored[l] = NONE
			}
#ifdef LOCKSTEP
			last[i] = V
#endif
		}
		i = 0
	}
#ifdef LOCKSTEP
	if
	:: last[0] = V - 1	/* one may end an update before the others */
	:: true
	fi;
#endif
	atomic {
		do
		:: i == RANKS -> break
		:: else ->
			run Memory(i);
#ifdef LOCKSTEP
			run Rank(i);
#else
			run Writer(i);
			run Reader(i);
#endif
			i++
		od
	}
}
