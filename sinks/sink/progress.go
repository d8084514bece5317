package sink

// Progress remembers which parts of a batch are settled when a Write fails, so that the next Write, of the same
// batch, sends only the rest. A part is whatever the sink writes or gives up as one: a request, a document.
// Parts must come out the same whenever the same batch is encoded. The zero Progress is ready to use.
type Progress struct {
	first, last string // ids of the batch's ends
	n           int
	settled     []bool
	loss        Partial
}

// Begin starts a Write of a batch that has this many parts: what is settled of it stays settled if it is that of
// the last Write which failed.
func (p *Progress) Begin(batch []Message, parts int) {
	if len(batch) == 0 || parts == 0 {
		*p = Progress{}
		return
	}
	first, last := batch[0].ID, batch[len(batch)-1].ID
	if first == p.first && last == p.last && len(batch) == p.n && parts == len(p.settled) {
		return
	}
	*p = Progress{first: first, last: last, n: len(batch), settled: make([]bool, parts)}
}

// Settled reports whether a part needs no more sending.
func (p *Progress) Settled(part int) bool { return p.settled[part] }

// Settle notes that a part is written.
func (p *Progress) Settle(part int) { p.settled[part] = true }

// Refuse notes that a part is refused for good.
func (p *Progress) Refuse(part int, r Refused) {
	p.settled[part] = true
	p.loss.Refused = append(p.loss.Refused, r)
}

// Late notes that a part has samples older than the destination keeps.
func (p *Progress) Late(part, samples int) {
	p.settled[part] = true
	p.loss.Late += samples
}

// End is what Write returns. A passing err keeps what is settled, losses included, for the next Write; nil and a
// permanent one end with the batch.
func (p *Progress) End(err error) error {
	if err != nil && !IsPermanent(err) {
		return err
	}
	loss := p.loss
	*p = Progress{}
	if err == nil && len(loss.Refused) == 0 && loss.Late == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	return &loss
}
