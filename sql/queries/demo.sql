pivot (select *, left(preview, 32) as message
       from reference_shift('latest') natural join snapshots where site = 'hidden_out')
on label using round(100 * first(shift), 2)
group by message_index, role, message order by message_index
